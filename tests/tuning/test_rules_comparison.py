"""Rules side by side: one record, a table, a picture."""

from dataclasses import replace
from functools import partial

import pytest
from commands import ROOT, run_here

from bild import BiLDConfig
from bild.show.plots import draw_folders
from bild.show.rules import rules_table
from bild.show.rules_picture import draw_rules
from bild.tuning.record import RulesRecord
from bild.tuning.rules import ACCEPTANCE, DRAFTING, rule_settings


@pytest.fixture
def command(mirror, monkeypatch, capsys, tmp_path):
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return partial(
        run_here, monkeypatch, capsys, "iwslt2017", "aligned", "--max-new-tokens", 6,
        "--max-eval-samples", 3, name="compare_rules",
    )  # fmt: skip


def test_the_command_compares(command, tmp_path):
    chosen = ("--rules", "exact", "lenient:share=0", "typical", "--draftings", "adaptive")
    (tmp_path / "mine").mkdir()
    done = command(*chosen, "--record", "mine/rules.json").require_success()
    record = RulesRecord.load(tmp_path / "mine/rules.json")
    labels = [arm.id.label for arm in record.arms if arm.id.kind == "bild"]
    exact, loosest, typical, adaptive = labels
    assert (exact, loosest, adaptive) == ("exact", "lenient:share=0", "adaptive:threshold=0.2")
    assert record.rules[typical].acceptance == typical == "typical:eps=0.3,delta=0.09"
    assert record.rules[adaptive].acceptance == "exact"
    by_label = {arm.id.label: arm for arm in record.arms if arm.id.kind == "bild"}
    assert by_label[exact].identical == by_label[adaptive].identical == 1
    assert by_label[loosest].stats.rollbacks == 0
    assert record.arms[0].id.kind == "vanilla"
    table = rules_table(record)
    assert table in done.out
    assert table.count("\n| `") == 4
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json*")}
    assert command(*chosen).require_success().path is not None
    assert (
        before.items() <= {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.json*")}.items()
    )
    (picture,) = draw_folders([tmp_path / "mine"])
    assert picture.name == "rules-mine"
    assert {t.get_text() for t in picture.figure.legends[0].get_texts()} == {
        *("large model alone", "small model alone"),
        *("exact", "lenient", "typical", "adaptive"),
    }


def test_with_guesses_all_arms_look_ahead_but_the_one_that_decides_itself(command, tmp_path):
    chosen = ("--rules", "topk", "--draftings", "margin", "adaptive", "--lookahead", 1)
    command(*chosen, "--record", tmp_path / "rules.json").require_success()
    record = RulesRecord.load(tmp_path / "rules.json")
    ahead = {arm.id.label: arm.id.ahead for arm in record.arms if arm.id.kind == "bild"}
    assert list(ahead.values()) == [True, True, False]
    note = rules_table(record).splitlines()[-1]
    assert "lookahead 1 (`adaptive:threshold=0.2`: 0), 3 examples" in note


def with_small_at(record, speedup, quality):
    """The record with the small model alone at another place."""
    arms = []
    for arm in record.arms:
        if arm.id.kind == "small":
            there = replace(arm.speed.speedup, value=speedup)
            score = replace(arm.quality[record.metric], value=quality)
            arm = replace(
                arm, speed=replace(arm.speed, speedup=there), quality={record.metric: score}
            )
        arms.append(arm)
    return replace(record, arms=arms)


@pytest.mark.parametrize(
    ("place", "side"),
    [((30.0, 2.0), (0.97, 0.04)), ((0.01, 99.0), (0.03, 0.96)), (None, None)],
)
def test_a_small_model_far_from_all_rules_leaves_them_the_picture(place, side):
    record = RulesRecord.load(ROOT / "results/demo/rules.json")
    rules = [arm for arm in record.arms if arm.id.kind == "bild"]
    speeds = [arm.speed.speedup.value for arm in rules]
    near = max(speeds) + 0.01, rules[0].quality[record.metric].value
    figure = draw_rules(with_small_at(record, *(place or near)), "rules")
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert low < min(speeds)
    assert max(speeds) < high < max(speeds) + (max(speeds) - min(speeds))
    words = [text.get_text() for text in axes.texts]
    if place is None:
        assert words == []
    else:
        assert words == [f"outside: {place[0]:.2f}x, BLEU {place[1]:.1f}"]
        assert side in [tuple(float(v[0]) for v in line.get_data()) for line in axes.lines]
    looks = {(line.get_marker(), line.get_color()) for line in axes.lines}
    labels = figure.legends[0].get_texts()
    assert len(looks) == len(labels) + 1  # the two dotted lines look alike


def test_an_unknown_rule_is_refused_before_anything_is_loaded(command):
    assert command("--rules", "typcal").err.startswith(
        "error: acceptance rule must be one of exact"
    )


def test_the_choice_of_rules_is_of_rules():
    base = BiLDConfig(0.4)
    settings = rule_settings(base, ACCEPTANCE, DRAFTING)
    assert len(settings) == len(ACCEPTANCE) + len(DRAFTING)
    assert all(settings[d].is_lossless for d in DRAFTING)
    assert [name for name in ACCEPTANCE if settings[name].is_lossless] == ["exact"]
