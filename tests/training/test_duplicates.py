"""Near duplicates: what counts as close, and texts that have nothing to compare."""

from __future__ import annotations

import json
import math

import pytest
from commands import run_here
from toy import save_data

from bild import BildError
from bild.tasks.reading import Example
from bild.training.duplicates import compare, nearest, normalize, sentences

CORPUS = [
    Example("Der Zug nach Köln ist weg.", "The train to Cologne is gone."),
    Example("Ja.", "Yes."),
    Example("👋", "👋"),
]


def test_similarity_is_that_of_trigrams():
    assert normalize("  Die  Katze, schläft? ") == "die katze schläft"
    assert sentences("Ja. Nein!") == {"ja nein", "ja", "nein"}
    near = nearest(["abcd", "xyz", "ab"], ["abce", "qqq", ""])
    assert near["abcd"] == (1 / 3, "abce")  # abc of abc, bcd, bce
    assert near["xyz"] == near["ab"] == (0.0, "")


def test_a_repeat_of_many_words_is_found_and_a_short_one_is_not():
    ours = [Example("Ach so. Der Zug nach Köln ist weg!", "I see. The train left."), CORPUS[1]]
    report, offenders = compare(ours, CORPUS, limit=1.0)
    assert report["de"]["exact"] == 1
    assert report["en"]["exact"] == 0
    assert "der zug nach köln ist weg" in offenders
    assert report["en"]["sentences"] == 4


def test_texts_without_letters_are_no_sentences(tmp_path, monkeypatch, capsys):
    save_data(tmp_path / "ours.jsonl", [("👋", "🎉!")])
    save_data(tmp_path / "corpus.jsonl", [(e.source, e.target) for e in CORPUS[2:]])
    record = tmp_path / "new" / "record.json"
    run_here(
        monkeypatch, capsys, tmp_path / "ours.jsonl", "--corpus", tmp_path / "corpus.jsonl",
        "--record", record, name="check_duplicates",
    ).require_success()  # fmt: skip
    nothing = {"sentences": 0, "exact": 0, "highest": 0.0, "at_least_0.7": 0}
    assert json.loads(record.read_text())["de"] == nothing


@pytest.mark.parametrize("limit", [math.nan, -0.1, 2])
def test_a_limit_is_a_share(limit):
    with pytest.raises(BildError, match="limit must be between 0 and 1"):
        compare(CORPUS, CORPUS, limit)
