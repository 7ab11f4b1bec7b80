"""Every flag of every command with odd text: one sentence, exit code 2, or the command goes on."""

from __future__ import annotations

import argparse
import sys
import unicodedata

import pytest
from commands import ROOT

from bild import cli
from bild.commands.main import COMMANDS, module_of

DATA = str(ROOT / "demo" / "sentences.jsonl")
TRAINING = (
    "finetune", "--init-from", "demo/small", "--train-file", DATA, "--validation-file", DATA,
    "--output-dir", "model",
)  # fmt: skip
# What each command needs, where it needs anything.
NEEDED = {
    "eval": ("demo",),
    "search": ("demo",),
    "compare": (
        "demo", "--large", "demo/large", "--small", "a=demo/small", "--data-file", DATA,
        "--test-file", DATA,
    ),
    "trace": ("Hallo.",),
    "generate": (DATA, "-o", "out.txt"),
    "align": (*TRAINING, "--large", "demo/large"),
    "finetune": TRAINING,
    "label": ("--large", "demo/large", "--data-file", DATA, "--output", "set.jsonl"),
    "agreement": ("--large", "demo/large", "--small", "demo/small", "--data-file", DATA),
    "tokenizer": ("--data-file", DATA, "--output-dir", "tokenizer"),
}  # fmt: skip
# Few flags that take a number or a model; they are tested apart.
NOT_HERE = {"completion", "doctor", "download", "plot"}
NAMES = sorted(set(COMMANDS) - NOT_HERE)
TEXTS = (
    "", " ", "nan", "-1", "1e999", "9" * 5000, "a" * 5000, "\x1b]0;owned\x07", "\udcff",
    "../ü/😀", "{}", "-", "/dev/null", "None",
)  # fmt: skip


class WentOnError(Exception):
    """The arguments were taken: models would be loaded now."""


def go_on(*_, **__):
    raise WentOnError


def flags(name):
    """(flag, action) of a command, for the flags that take a value."""
    parser = module_of(name).make_parser()
    return [
        (action.option_strings[-1], action)
        for action in parser._actions
        if action.option_strings
        and action.nargs != 0
        and not isinstance(action, argparse.BooleanOptionalAction)
    ]


def run(main):
    """The exit code; None where the command would go on."""
    try:
        cli.run(main)
    except WentOnError:
        return None
    except SystemExit as end:
        return end.code
    return 0


def what_is_wrong(said, code, flag, text):
    """With a refusal; empty where nothing is."""
    if code != 2:
        return f"exit code {code}"
    if not said.startswith("error: ") or said.count("\n") != 1:
        return "not one sentence"
    if len(said) > 1500:
        return f"{len(said)} characters"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in said[:-1]):
        return "control characters"
    shown = (text[:8], repr(text)[1:-1][:8], flag[2:], flag[2:].replace("-", "_"))
    return "" if any(part.lower() in said.lower() for part in shown) else "names nothing"


@pytest.mark.parametrize("name", NAMES)
def test_any_text_is_taken_or_refused_in_one_sentence(name, monkeypatch, capsys, tmp_path):
    module = module_of(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("bild.training.tokenizer.train_tokenizer", go_on)
    monkeypatch.setattr(module, "quiet_loading", go_on, raising=False)
    wrong, refused = [], 0
    for flag, action in flags(name):
        for text in TEXTS:
            count = action.nargs if isinstance(action.nargs, int) else 1
            given = [f"{flag}={text}"] if count == 1 else [flag, *[text] * count]
            monkeypatch.setattr(sys, "argv", [name, *NEEDED.get(name, ()), *given])
            try:
                code = run(module.main)
            except Exception as error:  # what a user would see as a stack trace
                wrong.append((flag, text[:30], f"{type(error).__name__}: {error}"[:300]))
                continue
            said = capsys.readouterr().err
            refused += code is not None
            fault = "" if code is None else what_is_wrong(said, code, flag, text)
            if fault:
                wrong.append((flag, text[:30], fault, said[:300]))
    assert wrong == []
    assert refused >= 2 * len(flags(name)) >= 10
