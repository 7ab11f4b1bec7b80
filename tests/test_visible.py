"""Text of data in a terminal: whole words, and nothing that steers it."""

from __future__ import annotations

import pytest

from bild.errors import BildError
from bild.evaluation.arms import BILD, VANILLA, ArmId
from bild.evaluation.loop import ArmSample, Sample
from bild.show.examples import examples_text, typical
from bild.visible import sentence, visible

WORDS = "Frühstück Haltestelle Donaudampfschiff Kaffee Regenschirm Wecker " * 4


def sample(source, text="A bus.", reference="The bus."):
    arms = {
        ArmId(kind): ArmSample(done, [1], 1.0, None, None)
        for kind, done in ((VANILLA, "Another bus."), (BILD, text))
    }
    return Sample(0, 0, source, reference, 5, False, arms)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_examples_are_broken_between_words(columns):
    lines = examples_text([sample(WORDS)], columns=columns).split("\n")
    assert max(map(len, lines)) <= columns
    assert set(" ".join(lines).split()) >= set(WORDS.split())
    assert [line.split(":")[0] for line in lines if line[0] != " "] == [
        "source", "large alone", "BiLD", "reference",
    ]  # fmt: skip
    assert all(line.startswith(" " * 13) for line in lines if line[0] == " ")


def test_long_examples_are_cut_and_escapes_are_shown():
    shown = examples_text([sample("a " * 400, text="\x1b[2J\x07 bus")], columns=80)
    assert shown.count("a ") < 200
    assert "..." in shown
    assert r"\x1b[2J\x07 bus" in shown
    assert "\x1b" not in shown


def test_a_good_a_middling_and_a_poor_example_are_shown_whatever_their_order():
    texts = ["The bus.", "The bus is", "The b", "That bug", "Tom", "Xyz"]
    assert [s.arms[ArmId(BILD)].text for s in typical([sample("", t) for t in texts], 3)] == [
        "The bus is", "That bug", "Xyz",
    ]  # fmt: skip
    assert [s.arms[ArmId(BILD)].text for s in typical([sample("", t) for t in texts[::-1]], 1)] == [
        "That bug"
    ]
    assert len(typical([sample("", "The bus.")], 3)) == 1
    untold = [sample("", text, reference=None) for text in texts[::-1]]
    assert typical(untold, 2) == untold[:2]


def test_what_steers_a_terminal_is_written_as_an_escape():
    assert visible("a\tb\r\nc") == "a b  c"
    assert visible("\x1b[31m\x07\x00\x9b\u202e\u2028\ud800") == (
        "\\x1b[31m\\x07\\x00\\x9b\\u202e\\u2028\\ud800"
    )
    assert visible("Grüße, 你好 👋 é") == "Grüße, 你好 👋 é"


def test_an_error_is_one_line_that_can_be_read_to_its_end():
    said = sentence(BildError(f"--seed must be a number, got '\x1b[2J{'9' * 5000}'\nand so on"))
    assert said.startswith("--seed must be a number, got '\\x1b[2J9999")
    assert said.endswith("999' and so on")
    assert len(said) < 250
    assert sentence(BildError("short")) == "short"
