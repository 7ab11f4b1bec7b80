"""The front door: what it draws, shows, times and says, and that README.md shows a record of it."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace

import pytest
import torch
from commands import ROOT, run_here
from records import around, environment, run_record
from rich.console import Console
from toy import save_model, save_tokenizer

from bild import BiLDConfig, BildError
from bild.benchmark.record import BenchmarkArm, Failed, Ratio, Spread
from bild.checkpoints.drafter import make_drafter
from bild.checkpoints.loading import load_model
from bild.config import EvalConfig
from bild.evaluation.arms import ArmId
from bild.evaluation.record import Quality
from bild.show.front import (
    BEST,
    FrontRecord,
    Shown,
    Span,
    drawn,
    examples_text,
    figures_text,
    front_config,
    front_text,
    in_words,
    shown,
)
from bild.show.pages import rendered
from bild.show.race import Racer

CONFIG = front_config(BEST, 100, compiled=True, threads=1, repeat=1, seed=0)
SHOWN = Shown(
    "Wo ist\nder Bahnhof?\x1b[2J",
    "Where is the station?",
    "Where is the station?",
    (Span("large", "Where"), Span("small", " is the"), Span("large", " station?")),
)


def front(method=1.5, width=0.1, **env):
    """A record: the engine makes 4x, the method `method` times as much."""
    greedy, alone, small, pair = CONFIG.arms
    ratios = {greedy: (1.0, None), alone: (4.0, None), small: (20.0, 5.0), pair: (6.0, method)}

    def arm(id, bleu):
        over, over_alone = ratios[id]
        return BenchmarkArm(
            id=id, title=id.kind, built="fast, float32, compiled", seconds=Spread(0.1 / over, 0, 1),
            encoder_share=0.1, outside_share=0.1, tokens_per_second=10.0, ready_seconds=1.0,
            same_output=1.0, models={}, ratio=Ratio(greedy, around(over, 0.1), None),
            ratio_same=None,
            ratio_alone=over_alone and Ratio(alone, around(over_alone, width), None), stats=None,
            rates=None, quality=Quality(bleu, bleu - 2, bleu + 2, "signature", {}),
            as_planned=None, costs=None,
        )  # fmt: skip

    run = run_record()
    arms = tuple(arm(id, bleu) for id, bleu in zip(CONFIG.arms, (30, 30, 25.5, 30), strict=True))
    return FrontRecord(
        models=run.models, data=run.data, env=environment(**env), config=CONFIG, timing=run.timing,
        metric="bleu", source_tokens=9.0, memory=Spread(1e9, 1e9, 1e9), arms=arms, growth=(),
        failed=(), examples=(SHOWN,),
    )  # fmt: skip


def test_the_sentences_are_drawn_and_not_the_first_ones():
    assert drawn(100, 0) == drawn(100, 0) != drawn(100, 1)
    assert drawn(100, 0) != [0, 1, 2]
    assert drawn(2, 0) == [0, 1]
    places = {place for seed in range(200) for place in drawn(20, seed)}
    assert places == set(range(20))


def test_the_four_arms_run_on_the_best_configuration_in_one_benchmark():
    assert [str(arm) for arm in CONFIG.arms] == [
        "greedy@float32", "vanilla-compiled@float32", "small-compiled@float32",
        "bild-compiled-ahead@float32/int8",
    ]  # fmt: skip
    assert CONFIG.small == "demo/drafter"
    assert CONFIG.bild == BiLDConfig(0.7, 0.69, variant="verified", start="small", lookahead=1)
    assert CONFIG.bild.is_lossless
    other = front_config(
        replace(BEST, small="demo/small", precision="int8", lookahead="auto", start="small"), 5,
        compiled=False, threads=None, repeat=2, seed=3,
    )  # fmt: skip
    assert (other.bild.start, other.bild.lookahead) == ("small", "auto")
    assert other.arms[-1] == ArmId("bild", "fast", "int8", False, ahead=True)
    assert (other.small, other.samples, other.repeat, other.seed) == ("demo/small", 5, 2, 3)


def test_every_word_tells_its_writer_without_colours_too():
    plain = examples_text([SHOWN], 60, colour=False).plain
    assert "BiLD         [Where] is the [station?]" in plain
    assert "[in brackets]: written by the large model" in plain
    assert "\x1b" not in plain
    text = examples_text([SHOWN], 60, colour=True)
    assert "BiLD         Where is the station?" in text.plain
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, color_system="standard").print(text)
    assert "\x1b[1;34mWhere\x1b[0m\x1b[32m is the\x1b[0m" in screen.getvalue()


def test_brackets_hold_no_spaces_of_their_own_and_lose_none():
    spans = (
        Span("small", "warm"),
        Span("large", " "),
        Span("small", "boots"),
        Span("large", " a "),
    )
    shown = replace(SHOWN, pair=(*spans, Span("small", "b")))
    assert "BiLD         warm boots [a] b\n" in examples_text([shown], 60, colour=False).plain


@pytest.mark.parametrize("columns", [40, 80])
def test_lines_break_between_words_within_the_terminal(columns):
    words = " ".join(f"word{i}" for i in range(30))
    long = replace(SHOWN, source=words, pair=(Span("small", words), Span("large", " end.")))
    lines = examples_text([long], columns, colour=False).plain.splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines).split()).count(words.replace("word0 ", "")) >= 1
    assert all(re.fullmatch(r"\[?\S+", word) for line in lines for word in line.split())


def test_the_table_has_both_baselines_with_their_spread():
    table = figures_text(front(), 80)
    rows = {line[:12].strip(): line for line in table.splitlines()[2:6]}
    assert list(rows) == [
        "transformers",
        "large alone",
        "small alone",
        "BiLD",
    ]
    assert "30.0 [28.0, 32.0]" in rows["BiLD"]
    assert "6.00 [5.90, 6.10]" in rows["BiLD"]
    assert "1.50 [1.40, 1.60]" in rows["BiLD"]
    assert "4.00 [3.90, 4.10]" in rows["large alone"]
    assert "x" not in rows["transformers"].removeprefix("transformers")
    assert max(map(len, table.splitlines())) <= 80
    wide = figures_text(front(method=12.34, width=3.21), 80)  # many digits
    assert max(map(len, wide.splitlines())) <= 80


@pytest.mark.parametrize(
    ("method", "width", "said"),
    [
        (1.5, 0.1, "the method makes that 1.50 times as fast again"),
        (1.05, 0.1, "changes that by 1.05x, which these sentences cannot tell from none"),
        (0.8, 0.1, "the method slows that down, to 0.80x"),
    ],
)
def test_words_say_what_the_engine_and_the_method_gave(method, width, said):
    words = in_words(front(method, width))
    assert "runs the large model 4.0 times as fast as transformers does" in words
    assert said in words
    assert "6.0 times together" in words
    assert (
        "small model alone is 5.0 times as fast as the large one, and writes 4.5 BLEU worse"
        in words
    )


def test_an_arm_that_did_not_run_is_named():
    record = front()
    record = replace(
        record, arms=record.arms[:3], failed=(Failed(CONFIG.arms[3], "BiLD", "no compiler"),)
    )
    with pytest.raises(BildError, match="BiLD did not run: no compiler"):
        front_text(record)


def test_a_page_shows_what_a_record_says_and_nothing_without_one(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- front: demo -->\nold\n<!-- end -->\nb\n")
    assert rendered(page, tmp_path) == "a\n<!-- front: demo -->\n<!-- end -->\nb\n"
    (tmp_path / "demo").mkdir()
    front().save(tmp_path / "demo" / "front.json")
    assert FrontRecord.load(tmp_path / "demo" / "front.json") == front()
    text = rendered(page, tmp_path)
    assert f"```text\n{front_text(front())}\n```\n" in text
    assert max(map(len, text.splitlines())) <= 90
    front(dirty=True).save(tmp_path / "demo" / "front.json")
    with pytest.raises(BildError, match="not made from a clean commit"):
        rendered(page, tmp_path)
    assert "<!-- front: demo -->" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_writers_of_a_real_output_make_its_text():
    racer = Racer.load(EvalConfig("demo", "aligned", CONFIG.bild, threads=1))
    *_, race = racer.run("Wir wollten eigentlich ans Meer fahren.", CONFIG.bild)
    example = shown(race, "-", frozenset(racer.tokenizer.all_special_ids))
    text = "".join(span.text for span in example.pair)
    assert text.strip() == race.bild.text
    assert {span.writer for span in example.pair} == {"large", "small"}
    assert all(a.writer != b.writer for a, b in zip(example.pair, example.pair[1:], strict=False))


def test_the_door_opens(monkeypatch, capsys, tmp_path):
    """scripts/demo.py on toy models in the places of the shipped ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("bild.benchmark.costs.CEILING_BYTES", 2**22)
    tokenizer = save_tokenizer(tmp_path / "demo" / "tokenizer")
    save_model(
        tmp_path / "demo/large", tokenizer, 0, layers=1, decoder_layers=1, width=64, head_width=16
    )
    large = load_model(str(tmp_path / "demo/large"), torch.float32, "cpu")
    make_drafter(large).save_pretrained(tmp_path / "demo/drafter")
    os.symlink(ROOT / "demo" / "sentences.jsonl", tmp_path / "demo" / "sentences.jsonl")
    done = run_here(monkeypatch, capsys, "--samples", 5, name="demo").require_success()
    assert done.err == ""  # no bar where nobody watches
    assert done.out.count("\nsource  ") == 3
    assert "Timing 5 sentences in four ways" in done.out
    assert re.search(r"^BiLD  .*\[.*\[.*\[", done.out, re.MULTILINE)
    assert "The engine runs the large model" in done.out
    assert "\x1b" not in done.out
    refused = run_here(monkeypatch, capsys, "--samples", 0, name="demo")
    assert (refused.code, refused.complaints) == (2, ["error: samples must be at least 1, got 0"])
