"""Rules side by side: one record, a table, a picture."""

from functools import partial

import pytest
from commands import run_here

from bild import BiLDConfig
from bild.show.plots import draw_folders
from bild.show.rules import rules_table
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
