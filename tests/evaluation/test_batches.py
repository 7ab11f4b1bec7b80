"""An evaluation in batches: the texts and counts of one without, and seconds by the batch."""

import json

import pytest
from commands import run_here

from bild.evaluation.record import RunRecord

DEMO = ("demo", "aligned", "--max-eval-samples", 5, "--threads", 1, "--warmup", 1, "--quiet")


def evaluated(monkeypatch, capsys, folder, *options, demo=DEMO):
    record = folder / "run.json"
    arguments = (*demo, "--output-dir", folder, "--record", record, *options)
    done = run_here(monkeypatch, capsys, *arguments)
    assert done.code == 0, done.err
    (path,) = folder.glob("demo/*/samples.jsonl")
    return RunRecord.load(record), [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("engine", ["fast", "transformers"])
def test_texts_and_counts_are_those_without_batches(monkeypatch, capsys, tmp_path, engine):
    alone, rows = evaluated(monkeypatch, capsys, tmp_path / "1", "--engine", engine)
    together, batches = evaluated(
        monkeypatch, capsys, tmp_path / "3", "--engine", engine, "--batch-size", 3
    )
    for one, own in zip(rows, batches, strict=True):
        for name, arm in own["arms"].items():
            for what in ("text", "tokens", "stats"):
                assert arm[what] == one["arms"][name][what]
    assert [arm.stats for arm in together.arms] == [arm.stats for arm in alone.arms]
    assert (alone.config.batch_size, together.config.batch_size) == (1, 3)
    # Batches of 3 and of 2; each gives its examples an equal part of its seconds.
    for name in batches[0]["arms"]:
        seconds = [row["arms"][name]["seconds"] for row in batches]
        assert len(set(seconds[:3])) == len(set(seconds[3:])) == 1
        assert len(set(seconds)) == 2
    assert "by batches of 3" in together.timing.interval
    assert "batches" not in alone.timing.interval


def test_a_batch_size_that_is_none_is_refused(monkeypatch, capsys, tmp_path):
    done = run_here(monkeypatch, capsys, *DEMO, "--output-dir", tmp_path / "out", "--batch-size", 0)
    assert done.code == 2
    assert "batch_size must be at least 1, got 0" in done.err
