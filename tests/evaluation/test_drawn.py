"""An evaluation whose arms all draw: by the seed and the example, and the record says how."""

import pytest
import torch
from commands import run_here
from test_batches import DEMO, evaluated

from bild import BiLDModel
from bild.drawing import Distribution
from bild.generation.sequences import stream_of
from bild.show.tables import run_text

DRAWN = ("--do-sample", "--temperature", 0.9, "--top-k", 0, "--top-p", 0.95, "--seed", 3)


def texts(rows, kind):
    return [arm["text"] for row in rows for name, arm in row["arms"].items() if kind in name]


def test_every_arm_draws_by_the_seed_and_the_example(monkeypatch, capsys, tmp_path):
    record, rows = evaluated(monkeypatch, capsys, tmp_path / "1", *DRAWN, "--repeat", 2)
    assert record.config.drawn == Distribution(0.9, 0, 0.95)
    assert (record.config.bild.sampling, record.config.bild.variant) == ("speculative", "verified")
    assert "drawn (speculative): temperature 0.9, top-k 0, top-p 0.95" in run_text(record, [])
    for kind in ("vanilla", "small", "bild"):
        first, second = texts(rows[:5], kind), texts(rows[5:], kind)
        assert first == second  # in each pass
        assert len(set(first)) == 5
    pair = BiLDModel.from_pretrained("demo/large", "demo/small-aligned")
    for number, text in enumerate(texts(rows[:5], "vanilla")[:2]):
        ids = pair.tokenizer(rows[number]["source"], return_tensors="pt").input_ids
        own = pair.sample(
            ids, attention_mask=torch.ones_like(ids), generator=stream_of(3, number),
            **Distribution(0.9, 0, 0.95).settings, max_new_tokens=record.config.max_new_tokens,
        )  # fmt: skip
        assert text == pair.tokenizer.decode(own.sequences[0], skip_special_tokens=True)


@pytest.mark.parametrize(("engine", "rule"), [("fast", "block"), ("transformers", "bild")])
def test_examples_that_are_drawn_together_draw_what_they_draw_alone(
    monkeypatch, capsys, tmp_path, engine, rule
):
    drawn = (*DRAWN, "--sampling", rule, "--engine", engine)
    _, rows = evaluated(monkeypatch, capsys, tmp_path / "1", *drawn)
    record, together = evaluated(monkeypatch, capsys, tmp_path / "3", *drawn, "--batch-size", 3)
    assert (record.config.batch_size, record.config.drawn) == (3, Distribution(0.9, 0, 0.95))
    for one, own in zip(rows, together, strict=True):
        assert len(own["arms"]) == 3
        for name, arm in own["arms"].items():
            for what in ("text", "tokens", "stats"):
                assert arm[what] == one["arms"][name][what]
    assert texts(rows, "vanilla") != texts(rows, "bild")


def test_the_large_model_alone_draws_together_what_it_draws_by_one(monkeypatch, capsys, tmp_path):
    demo = ("demo", "vanilla", *DEMO[2:])
    _, rows = evaluated(monkeypatch, capsys, tmp_path / "1", *DRAWN, demo=demo)
    drawn = (*DRAWN, "--batch-size", 4)
    _, together = evaluated(monkeypatch, capsys, tmp_path / "4", *drawn, demo=demo)
    assert texts(rows, "vanilla") == texts(together, "vanilla")
    assert len(set(texts(rows, "vanilla"))) == 5


def test_another_seed_draws_others_and_bild_has_its_rule(monkeypatch, capsys, tmp_path):
    _, rows = evaluated(monkeypatch, capsys, tmp_path / "1", *DRAWN)
    record, others = evaluated(
        monkeypatch, capsys, tmp_path / "2", *DRAWN[:-1], 4, "--sampling", "bild"
    )
    assert record.config.bild.sampling == "bild"
    for kind in ("vanilla", "bild"):
        assert texts(rows, kind) != texts(others, kind)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--temperature", 0.5), "--temperature is for drawn outputs; give --do-sample too"),
        (("--sampling", "block"), "--sampling is for drawn outputs"),
        (("--do-sample", "--temperature", 0), "temperature must be above 0 and finite, got 0.0"),
        (("--do-sample", "--top-p", 2), "top_p must be above 0 and at most 1, got 2.0"),
        (("--do-sample", "--lookahead", 1), "lookahead=1"),
        (("--do-sample", "--rule", "exact"), "acceptance='exact' does not judge drafts"),
    ],
)
def test_what_cannot_be_drawn_is_refused(monkeypatch, capsys, tmp_path, flags, said):
    done = run_here(monkeypatch, capsys, *DEMO, "--output-dir", tmp_path / "out", *flags)
    assert done.code == 2
    assert said in done.err
