"""Corpus splits, further corpora, and lines of several sentences."""

from __future__ import annotations

import json

import pytest
from commands import run_here
from toy import PAIRS, save_data

from bild import BildError
from bild.training.corpus import concatenate, joining_pairs, split_by_sentence


def test_split_keeps_sentences_on_one_side():
    # Chains: one English sentence with two German ones, one of which has a second English one.
    chained = [(f"a{i}", f"x{i}") for i in range(300)]
    chained += [(f"A{i} ", f"y{i}") for i in range(0, 300, 3)]
    chained += [(f"b{i}", f"y{i}") for i in range(0, 300, 6)]
    train_pairs, validation, test = split_by_sentence(chained, 40, seed=0)
    assert len(validation) == len(test) == 40
    assert sorted(train_pairs + validation + test) == sorted(chained)
    sides = [
        {text.strip().lower() for pair in part for text in pair}
        for part in (train_pairs, validation, test)
    ]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert split_by_sentence(chained, 40, seed=1)[1] != validation


def test_split_refuses_more_than_there_is():
    with pytest.raises(BildError, match="cannot hold out 2 x 30 pairs from 40"):
        split_by_sentence(PAIRS, 30, seed=0)


def test_concatenation_uses_every_pair_once_in_lines_of_one_to_four():
    lines = concatenate(PAIRS, seed=3)
    count = [source.count(".") for source, _ in lines]
    assert sum(count) == len(PAIRS)
    assert set(count) <= {1, 2, 3, 4}
    assert len(set(count)) > 1
    assert all(s.count(".") == t.count(".") for s, t in lines)
    assert concatenate(PAIRS, seed=3) == lines != concatenate(PAIRS, seed=4)


def test_further_pairs_join_unless_they_repeat_one_or_hold_a_held_out_sentence():
    train = [("Hallo.", "Hello."), ("Ja.", "Yes.")]
    held_out = [("Der Zug ist weg.", "The train is gone.")]
    further = [
        ("Nein.", "No."),
        ("nein. ", "NO."),  # repeats the one before
        (" hallo.", "hello."),  # repeats one of the training part
        ("Hallo.", "Hi."),  # no repetition: the target is new
        ("der zug ist weg.", "The train left."),  # the source is held out
        ("Weg ist er.", " the train is gone. "),  # the target is
        ("The train is gone.", "Le train est parti."),  # a held-out target as a source
    ]
    assert joining_pairs(train, held_out, further) == [further[0], further[3]]


def test_further_corpora_join_training_alone(tmp_path, monkeypatch, capsys):
    save_data(tmp_path / "corpus.jsonl")
    more = [(f"Das {n} ist {n}.", f"That {n} is {n}.") for n in ("Haus", "Boot", "Dach")]
    save_data(tmp_path / "a.jsonl", [more[0], PAIRS[0], more[1]])
    save_data(tmp_path / "b.jsonl", [more[1], *PAIRS, more[2]])

    def make(folder, *extra):
        return run_here(
            monkeypatch, capsys, "--corpus", tmp_path / "corpus.jsonl", "--held-out", 5,
            "--vocab-size", 40, "--output-dir", tmp_path / folder, *extra, name="make_demo_data",
        ).require_success()  # fmt: skip

    make("alone")
    done = make("more", "--extra", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert "a.jsonl: 2 of 3 pairs join the training part" in done.out
    assert "b.jsonl: 1 of 42 pairs join the training part" in done.out
    for part in ("validation", "test", "validation_lines", "test_lines"):
        ours, theirs = (tmp_path / f / f"{part}.jsonl" for f in ("alone", "more"))
        assert ours.read_bytes() == theirs.read_bytes(), part
    before, after = (
        [json.loads(line) for line in (tmp_path / f / "train.jsonl").read_text().splitlines()]
        for f in ("alone", "more")
    )
    assert len(before) == 30
    assert after == before + [{"de": s, "en": t} for s, t in more]
