"""The lock file: whole, hashed, and of the environment that is asked for and tested."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
from commands import ROOT

LINE = re.compile(r"([a-z0-9.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")


@pytest.fixture(scope="module")
def locked():
    header, *lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert header.startswith("# Python 3.")
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found)
    return {match[1]: match[2] for match in found}


def test_what_is_asked_for_is_locked_in_that_version(locked):
    pinned = {}
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, equals, number = line.partition("==")
            if equals:
                pinned[name.strip().lower().replace("_", "-").partition("[")[0]] = number.strip()
    assert len(pinned) > 25
    for name, number in pinned.items():
        # A local version, as 2.13.0+cpu, says which build of it was tested.
        assert locked[name].partition("+")[0] == number, name


def test_nothing_but_versions_and_hashes_is_in_it(locked):
    assert "://" not in (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert len(locked) > 150
    assert "bild" not in locked
    assert "big-little-decoder" not in locked


def test_it_is_the_environment_that_these_tests_run_in(locked):
    for name in ("transformers", "safetensors", "tokenizers", "numpy"):
        assert version(name) == locked[name], f"{name}: run scripts/make_lock.py again"
