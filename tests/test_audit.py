"""The look for known holes: what it says of them, and that nobody's network decides."""

from __future__ import annotations

import importlib.util
import subprocess

import pytest
from commands import ROOT

HOLE = {"id": "PYSEC-2099-1", "fix_versions": ["2.1"], "aliases": [], "description": "a hole"}
OLD = {"name": "soup", "version": "2.0", "vulns": [HOLE]}
GOOD = {"name": "salad", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found"}


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_hole_is_named_with_the_version_without_it(audit):
    text, code = audit.report([OLD, GOOD, UNKNOWN])
    assert code == 1
    assert text.splitlines() == [
        "soup 2.0: PYSEC-2099-1, repaired in 2.1",
        "known holes: 1 in 2 packages (1 not known there)",
    ]
    assert audit.report([GOOD])[1] == 0


@pytest.mark.parametrize("said", ["", "no JSON", "{}", '{"dependencies": []}'])
def test_without_an_answer_it_is_skipped_in_one_sentence(audit, monkeypatch, said):
    done = subprocess.CompletedProcess([], 1, stdout=said, stderr="ConnectionError")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    text, code = audit.report(audit.answers())
    assert (code, text.count("\n")) == (0, 0)
    assert "skipped" in text
    assert audit.report([UNKNOWN]) == (text, code)


def test_check_asks_for_it():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ncheck: lint audit test " in makefile
