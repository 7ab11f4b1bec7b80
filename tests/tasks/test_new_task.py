"""A new task is one entry: everything that decodes a task's data then knows it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from commands import run_here
from mirror import PAIRS, save_checkpoint, save_mt5_tokenizer, tiny_pair

from bild.tasks.registry import TASKS, PublishedRow, Task, Thresholds

ENTRY = Task(
    name="garden",
    description="four sentences about a garden",
    data=None,
    source_key="from",
    target_key="to",
    prefix="übersetze: ",
    metric="bleu",
    large="gardener/large",
    small="gardener/small",
    aligned=None,
    tokenizer="gardener/tokenizer",
    thresholds={"unaligned": (Thresholds(0.4, 1.0),)},
    max_source_tokens=24,
    max_new_tokens=7,
    split="evening",
)


@pytest.fixture
def garden(monkeypatch, tmp_path):
    """The entry, and what it names: two checkpoints, a tokenizer, four examples."""
    models, data = tmp_path / "models", tmp_path / "data"
    tokens = save_mt5_tokenizer(models / "gardener" / "tokenizer")
    pair = tiny_pair("iwslt2017", tokens, 0, 0)
    for role in ("large", "small"):
        save_checkpoint(pair[role], models / "gardener" / role)
    file = data / "garden" / "evening.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps({"from": s, "to": t}) + "\n" for s, t in PAIRS[:4]))
    monkeypatch.setenv("BILD_MODELS_ROOT", str(models))
    monkeypatch.setenv("BILD_DATA_ROOT", str(data))
    monkeypatch.setitem(TASKS, "garden", ENTRY)


@pytest.mark.parametrize("mode", ["vanilla", "unaligned"])
def test_a_task_of_one_entry_is_evaluated(garden, monkeypatch, capsys, tmp_path, mode):
    done = run_here(monkeypatch, capsys, "garden", mode, "--output-dir", tmp_path / "out")
    record = done.require_success().record()
    assert (record.config.task, record.models.large.id) == ("garden", "gardener/large")
    assert record.data.origin == "$BILD_DATA_ROOT/garden/evening.jsonl"
    assert record.metric == "bleu"
    assert [(s["source"], s["reference"]) for s in done.samples()] == list(PAIRS[:4])
    assert all(len(a["tokens"]) <= 8 for s in done.samples() for a in s["arms"].values())
    if mode == "unaligned":
        assert record.config.bild.fallback_threshold == 0.4
    assert "published" not in done.out


def test_its_missing_aligned_model_is_refused(garden, monkeypatch, capsys, tmp_path):
    done = run_here(monkeypatch, capsys, "garden", "aligned", "--output-dir", tmp_path / "out")
    assert done.code == 2
    assert "garden has no aligned small model" in done.err


def test_a_simulated_pair_asks_for_the_length_of_its_sources(garden, monkeypatch, capsys, tmp_path):
    """The entry has no `source_tokens`."""
    row = PublishedRow(
        "paper", "unaligned", 0.4, 1.0, "bleu", 30.0, 1.5, 10.0, 1.0, mean_length=8.0
    )
    monkeypatch.setitem(TASKS, "garden", replace(ENTRY, published=(row,)))
    flags = ("--pair", "t5-large/t5-small", "--rates", "garden", "--output-dir", tmp_path / "out")
    done = run_here(monkeypatch, capsys, *flags, name="benchmark")
    assert done.code == 2
    assert "sources of garden is not known; give --source-tokens" in done.err
