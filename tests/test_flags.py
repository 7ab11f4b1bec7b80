"""Flags from dataclasses, and what every script's flags have in common."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from commands import ROOT, run_here, script

from bild import BiLDConfig
from bild.config import EvalConfig
from bild.drawing import Distribution
from bild.flags import add_fields, documented, read_fields
from bild.parser import Parser

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


@dataclass(frozen=True)
class Soup:
    """A soup.

    Attributes:
        kind: what it is
            made of.
        spoons, bowls: how many, 100 % of them clean.
        salt: grams.
        hot: whether it is.
        guests: names.
        wait: minutes.
        note: for the cook; without it, nothing is said.

    Raises:
        BildError: never.
    """

    kind: Literal["leek", "pea"] = "leek"
    spoons: int = 2
    bowls: int | None = None
    salt: tuple[float, float] = (0.5, 1.0)
    hot: bool | None = None
    guests: tuple[str, ...] = ()
    wait: float | Literal["enough"] = 0
    note: str | None = None


NAMES = [field.name for field in fields(Soup)]


@pytest.fixture
def parser():
    parser = Parser("Cooks.")
    add_fields(parser, Soup, *NAMES, note={"flag": "--remark"})
    return parser


def test_a_field_is_documented_in_its_class():
    said = documented(Soup)
    assert list(said) == NAMES
    assert said["kind"] == "what it is made of"
    assert said["spoons"] == said["bowls"] == "how many, 100 % of them clean"


def test_without_flags_the_fields_have_their_defaults(parser):
    assert Soup(**read_fields(parser.parse_args([]), *NAMES)) == Soup()


def test_flags_have_the_types_of_their_fields(parser):
    given = "--kind pea --spoons 3 --bowls 4 --salt 1 2.5 --no-hot --guests Ann Bo --wait 7"
    read = Soup(**read_fields(parser.parse_args(given.split()), *NAMES))
    assert read == Soup("pea", 3, 4, (1.0, 2.5), False, ("Ann", "Bo"), 7.0)
    said = read_fields(parser.parse_args(["--wait", "enough", "--remark", "more"]), *NAMES)
    assert Soup(**said) == Soup(wait="enough", note="more")


@pytest.mark.parametrize(
    ("given", "needle"),
    [
        ("--kind beet", "--kind: must be one of leek, pea, got 'beet'"),
        ("--spoons many", "invalid int value: 'many'"),
        ("--salt 1", "expected 2 arguments"),
        ("--wait long", "invalid float or enough value: 'long'"),
        ("--spoon 3", "unrecognized arguments: --spoon"),  # no abbreviations
    ],
)
def test_a_wrong_value_is_refused_by_name(parser, capsys, given, needle):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(given.split())
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert needle in said
    assert said.count("\n") == 1


def test_help_has_what_the_class_says_and_the_default(parser):
    words = " ".join(parser.format_help().split())
    assert "how many, 100 % of them clean (default: 2)" in words
    assert "grams (default: 0.5 1)" in words
    assert "for the cook; without it, nothing is said" in words
    assert words.count("(default") == 4


# ------------------------------------------------------------------------------ the scripts


@pytest.fixture(scope="module")
def parsers():
    """script -> its parser."""
    found: dict[str, argparse.ArgumentParser] = {}

    def parse(parser, *_):
        found[name] = parser
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", ["script"])
        for name in SCRIPTS:
            with pytest.raises(SystemExit):
                script(name).main()
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_says_what_it_is_for_and_what_it_is_without(parsers, name):
    parser = parsers[name]
    assert not parser.allow_abbrev
    for action in parser._actions:
        assert action.help, action.dest
        if action.choices is None and not action.required and action.default is not None:
            shown = parser._get_formatter()._get_help_string(action)
            silent = action.default is False or action.default in ("", (), argparse.SUPPRESS)
            assert "default" in shown or silent, action.dest


def test_every_setting_of_an_evaluation_has_a_flag(parsers):
    known = {action.dest for action in parsers["run_eval"]._actions}
    settings = {f.name for f in (*fields(EvalConfig), *fields(Distribution))}
    assert settings - {"bild", "drawn"} <= known
    assert {f.name for f in fields(BiLDConfig)} - known == {
        "fallback_threshold",
        "rollback_threshold",
    }
    assert {"fallback", "rollback"} <= known


def test_thresholds_are_flags_or_stand_in_their_place(monkeypatch, capsys):
    done = run_here(monkeypatch, capsys, "demo", "unaligned", "0.5", "--fallback", "0.6")
    assert done.code == 2
    assert done.err == "error: two values of fallback were given, 0.5 and 0.6; keep one\n"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run_eval", ["demo", "--engine", "quick"]),
        ("run_eval", ["demo", "--precision", "int4"]),
        ("run_eval", ["demo", "--variant", "mine"]),
        ("run_eval", ["demo", "--dtype", "int8"]),
        ("run_eval", ["demo", "--start", "both"]),
        ("show_trace", ["Ja.", "--device", "gpu"]),
        ("search_thresholds", ["demo", "--method", "luck"]),
    ],
)
def test_a_wrong_choice_is_refused_with_those_there_are(monkeypatch, capsys, name, arguments):
    done = run_here(monkeypatch, capsys, *arguments, name=name)
    assert done.code == 2
    *_, flag, value = arguments
    assert f"argument {flag}: must be " in done.err
    assert f", got {value!r}" in done.err
    assert done.err.count("\n") == 1


def test_help_comes_without_torch():
    code = f"""
import contextlib, io, runpy, sys
for name in {SCRIPTS}:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        runpy.run_path(f"scripts/{{name}}.py", run_name="__main__")
    assert said.getvalue().startswith("usage"), name
    heavy = {{"torch", "transformers", "datasets", "matplotlib"}} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
