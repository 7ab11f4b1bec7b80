"""A race of the pair against the large model alone, and how it is shown: console, page."""

from __future__ import annotations

import copy
import io
import itertools
import math
import re
import sys
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from commands import ROOT, run_command, run_here
from rich.console import Console

from bild import BiLDConfig, BildError, BiLDModel
from bild.config import EvalConfig
from bild.show.html import page_html
from bild.show.race import Racer, unknown_characters
from bild.show.terminal import RaceText, wrapped
from bild.show.views import limits, token_views

SENTENCE = "Mein Wecker blieb heute früh stumm. Der Bus war natürlich schon weg."


@pytest.fixture(scope="module")
def racer():
    return Racer.load(EvalConfig("demo", "unaligned", BiLDConfig(0.4, 3)))


@pytest.fixture(scope="module")
def states(racer):
    return list(racer.run(SENTENCE, BiLDConfig(0.4, 3)))


def test_both_arms_write_in_turns_and_end_with_their_own_outputs(racer, states):
    *running, end = states
    assert end.finished
    assert not any(state.finished for state in running)
    inputs = racer.tokenizer(SENTENCE, return_tensors="pt")
    options = {"max_new_tokens": 128, "do_sample": False}
    alone = racer.pair.large.generate(**inputs, **options)
    bild = racer.pair.generate(**inputs, bild_config=BiLDConfig(0.4, 3), **options)
    for arm, tokens in (("alone", alone), ("bild", bild.sequences)):
        shown = [getattr(state, arm) for state in states]
        assert shown[-1].text == racer.tokenizer.decode(tokens[0], skip_special_tokens=True)
        assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(shown))
        assert len({runner.text for runner in shown}) > 5  # it streams
    assert end.bild.stats == bild.stats
    assert end.speedup == end.alone.seconds / end.bild.seconds
    for runner in (end.alone, end.bild):
        assert 0 < runner.trace.seconds() < runner.seconds


def test_a_race_that_nobody_watches_ends(racer):
    before = threading.active_count()
    race = racer.run(SENTENCE, BiLDConfig(0.4, 3))
    next(race)
    assert threading.active_count() > before
    race.close()
    assert threading.active_count() == before


def test_an_error_in_an_arm_is_raised(racer):
    broken = copy.deepcopy(racer.pair.small)
    broken.get_output_embeddings().weight.data.fill_(math.nan)
    pair = BiLDModel(racer.pair.large, broken)
    with pytest.raises(BildError, match="small model's scores are NaN"):
        list(replace(racer, pair=pair).run(SENTENCE, BiLDConfig(0.4, 3)))
    with pytest.raises(BildError, match="the source is empty"):
        next(racer.run("  \n", BiLDConfig()))


def test_a_source_that_is_no_text_is_refused(racer):
    with pytest.raises(BildError, match="not valid Unicode"):
        next(racer.run("Schnee \udcff", BiLDConfig()))


def test_characters_that_the_tokenizer_does_not_know_are_named(racer):
    assert unknown_characters(racer.tokenizer, "Es kostet 12 Mark. Schön!") == ""
    *_, race = racer.run("Es kostet 12 € \u4f60.", BiLDConfig())
    assert race.unknown == "€\u4f60"
    assert limits(race) == ["The tokenizer does not know € \u4f60."]


def test_what_is_cut_short_is_said(racer):
    def said(**fields):
        *_, race = replace(racer, **fields).run(SENTENCE, BiLDConfig())
        return limits(race)

    length = len(racer.tokenizer(SENTENCE)["input_ids"])
    assert said(max_source_tokens=length) == []
    assert said(max_source_tokens=5)[0] == (
        f"The source has {length} tokens; the models read the first 5."
    )
    assert said(max_new_tokens=3) == [
        "The output of the large model alone ends at its limit of 3 tokens.",
        "The output of BiLD ends at its limit of 3 tokens.",
    ]


# ------------------------------------------------------------------------------ a page


def test_the_page_is_well_formed_needs_nothing_and_escapes_what_was_typed(racer):
    evil = "<script>alert(1)</script> & \"quoted\" 'text' ${1} {{ 2 }} Schnee."
    *_, race = racer.run(evil, BiLDConfig(0.4, 3))
    html = page_html([race, race])
    assert "<script" not in html
    assert not re.search(r"https?:|//|\bsrc=|\bhref=|url\(|@import", html)
    root = ET.fromstring(html.removeprefix("<!DOCTYPE html>"))
    articles = root.findall(".//article")
    assert len(articles) == 2
    assert articles[0].find("dl/dd").text == evil
    chips = articles[0].findall("ol/li")
    views = token_views(race.bild)
    assert len(chips) == len(views) == len(race.bild.trace.tokens)
    for chip, view in zip(chips, views, strict=True):
        assert view.kind in chip.get("class").split()
        assert (chip.find("s") is not None) == (view.kind == "rolled-back")
        assert chip.find("small").text == f"{view.confidence:.2f}"  # in sight
        assert chip.get("tabindex") == "0"  # within reach of the keyboard
        assert f"{100 * view.confidence:.1f} % sure" in chip.get("aria-label")
    blocks = articles[0].findall(".//div[@role='img']/i")
    forwards = race.bild.trace.forwards + race.alone.trace.forwards
    assert sum(b.get("class") != "rest" for b in blocks) == len(forwards)
    for block in blocks:
        left, width = (float(v) for v in re.findall(r"([\d.]+)%", block.get("style")))
        assert left >= 0
        assert left + width <= 100.02


# ------------------------------------------------------------------------------ a terminal


def printed(race, width, encoding="utf-8"):
    """The lines of a race on a console, and their width."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace", newline="\n")
    console = Console(width=width, file=file, force_terminal=False, color_system=None)
    console.print(RaceText(race))
    file.flush()
    return file.buffer.getvalue().decode(encoding).split("\n")


@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_no_word_and_no_figure_is_cut_in_two(racer, width):
    *_, race = racer.run(f"{SENTENCE} Heute Morgen lag überall Schnee.", BiLDConfig(0.6, 2))
    lines = printed(race, width)
    assert max(map(len, lines)) <= width
    shown = " ".join(lines).split()
    for text in (race.source, race.alone.text, race.bild.text):
        assert set(text.split()) <= set(shown)
    assert not any(re.match(r"(ms|%)\b", line.strip()) for line in lines)


def test_lines_are_wrapped_between_a_figure_and_the_next():
    line = "BiLD: 4.4 ms = 40 %"
    assert wrapped(line, 80) == line
    for width in range(8, 20):
        assert not re.search(r"\d\n(ms|%)", wrapped(line, width))


def test_in_latin_1_it_is_drawn_in_ascii(states):
    text = "\n".join(printed(states[-1], 100, "cp1252"))
    assert "früh" in text
    assert re.search(r"BiLD, small  \.+[ #=]+", text)
    assert not re.search(r"[\u2400-\u27ff]", text)
    assert "\u2588" in "\n".join(printed(states[-1], 100))


def test_a_console_without_utf_8_gets_a_trace(tmp_path):
    done = run_command(
        (sys.executable, ROOT / "scripts" / "show_trace.py", "Łódź lag im Schnee.", "--width", 60),
        tmp_path,
        {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    ).require_success()
    assert "?" in done.out.splitlines()[0]
    assert "large forward" in done.out


def test_what_steers_a_terminal_is_shown_not_sent(monkeypatch, capsys, tmp_path):
    picture, page = tmp_path / "trace.svg", tmp_path / "trace.html"
    run = run_here(
        monkeypatch, capsys, "Rot \x1b[31m\x07 ist & <Schnee>\x01.", "--svg", picture,
        "--html", page, name="show_trace",
    ).require_success()  # fmt: skip
    assert r"Rot \x1b[31m\x07 ist & <Schnee>\x01." in run.out
    assert not re.search(r"[\x01-\x09\x0b-\x1f]", run.out)
    assert "x1b[31m" in "".join(ET.parse(picture).getroot().itertext())
    assert "x1b[31m" in "".join(ET.parse(page).getroot().itertext())


def test_the_script_prints_it_and_writes_page_and_picture(monkeypatch, capsys, tmp_path):
    page, picture = tmp_path / "new" / "trace.html", tmp_path / "trace.svg"
    done = run_here(
        monkeypatch, capsys, SENTENCE, "--html", page, "--svg", picture, "--width", 100,
        "--rollback", 0.5, name="show_trace",
    )  # fmt: skip
    done.require_success()
    for words in (SENTENCE, "large alone", "BiLD, small", "fallback 0.6, rollback 0.5"):
        assert words in done.out
    for mark in ("s .", "L .", "x .", "? ."):
        assert mark in done.out, "a mark that is nowhere printed"
    assert len(ET.parse(page).findall(".//article")) == 1
    assert len(ET.parse(picture).getroot()) > 0
    assert "url(" not in re.sub(r"url\(#", "", picture.read_text(encoding="utf-8"))

    for given, complaint in ((b"\n", "there is no sentence"), (b"Sch\xe4fer\n", "is not UTF-8")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        done = run_here(monkeypatch, capsys, name="show_trace")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert complaint in done.err
    done = run_here(monkeypatch, capsys, "Schnee.", "--width", 0, name="show_trace")
    assert "--width must be at least 30 columns, got 0" in done.err
    done = run_here(monkeypatch, capsys, "Schnee.", "--html", tmp_path, name="show_trace")
    assert "is a folder; name a file" in done.err
