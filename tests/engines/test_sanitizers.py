"""The engine's C++ under address and undefined-behaviour sanitizers, over random shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, environment

from bild.engines.build import find_compiler

SECONDS = 4  # of decoding


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    """Decode with the sanitized engine, compiled once, in a process of its own."""
    folder = tmp_path_factory.mktemp("sanitized")
    compiler = find_compiler()
    found = subprocess.run(
        [*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("a compiler without an address sanitizer")
    more = {
        "LD_PRELOAD": found,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "BILD_CACHE": str(folder / "cache"),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }

    def run(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / "tests" / "engines" / "sanitized.py", str(SECONDS), *arguments],
            env=environment(folder, more),
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


def test_random_shapes_are_decoded_without_a_finding(decode):
    done = decode()
    assert done.returncode == 0, done.stderr[:3000]
    models, _, outputs, _ = done.stdout.split()
    assert int(models) >= 4
    assert int(outputs) >= 16


def test_an_element_too_few_is_found(decode):
    done = decode("short")
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
