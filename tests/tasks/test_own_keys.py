"""A data set of one's own in `bild eval`: keys, prefix, metric, by flags and without code."""

from __future__ import annotations

import json

import pytest
from commands import run_here
from mirror import PAIRS


@pytest.fixture
def evaluate(mirror, monkeypatch, capsys, tmp_path):
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    data = tmp_path / "data.jsonl"
    rows = [{"frage": s, "antwort": t} for s, t in PAIRS[:3]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ("iwslt2017", "--data-file", data, "--output-dir", tmp_path / "out")

    def run(*flags):
        short = ("--max-new-tokens", 6, "--warmup", 0, "--no-small-alone")
        return run_here(monkeypatch, capsys, *own, *short, *flags)

    return run


KEYS = ("--source-key", "frage", "--target-key", "antwort")


def test_keys_and_metric_are_those_of_the_flags(evaluate):
    done = evaluate(*KEYS, "--metric", "rougeL").require_success()
    assert [(s["source"], s["reference"]) for s in done.samples()] == [*PAIRS[:3]]
    record = done.record()
    assert record.metric == "rougeL"
    assert "rougeL" in record.large.quality
    assert record.config.source_key == "frage"


def test_a_prefix_changes_what_is_read_and_is_part_of_the_runs_identity(evaluate):
    plain = evaluate(*KEYS).require_success()
    prefixed = evaluate(*KEYS, "--prefix", "Frage: ").require_success()
    counts = [[s["source_tokens"] for s in done.samples()] for done in (plain, prefixed)]
    assert all(a < b for a, b in zip(*counts, strict=True))
    assert prefixed.record().config.prefix == "Frage: "
    assert plain.path != prefixed.path


def test_without_the_keys_the_line_is_named(evaluate):
    done = evaluate()
    assert done.code == 2
    assert "line 1 has no key 'de' (its keys: antwort, frage)" in done.err


def test_a_metric_that_is_none_is_refused(evaluate):
    done = evaluate(*KEYS, "--metric", "meteor")
    assert done.code == 2
    assert "--metric: must be one of bleu, rouge1" in done.err
