"""Write requirements.lock: every package of this environment, its version and its files' SHA-256.

    .venv/bin/python scripts/make_lock.py

Asks the package index for the files that pip would install here, and installs nothing. What is
locked is the environment of this Python on this kind of machine; with another one, install
requirements-dev.txt. To install what is locked: pip install --require-hashes -r requirements.lock
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from bild.cli import run
from bild.errors import BildError
from bild.evaluation.environment import ROOT
from bild.files import write_atomically
from bild.parser import Parser

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def installed() -> str:
    """name==version of all packages, a line each, without this project."""
    done = subprocess.run(
        [*PIP, "freeze", "--all", "--exclude-editable"], capture_output=True, text=True, check=True
    )
    return done.stdout


def files_of(pins: str) -> list[tuple[str, str, str]]:
    """(name, version, SHA-256) of the files that pip would install for them, by name.

    Raises:
        BildError: the index does not have one, or is not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        wanted.write_text(pins, encoding="utf-8")
        done = subprocess.run(
            [
                *PIP, "install", "--dry-run", "--ignore-installed", "--no-deps",
                "--report", str(report), "-r", str(wanted),
            ],
            capture_output=True,
            text=True,
        )  # fmt: skip
        if done.returncode:
            raise BildError(f"pip cannot find the files: {done.stderr.strip()[-300:]}")
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return sorted(
        (
            entry["metadata"]["name"].lower().replace("_", "-"),
            entry["metadata"]["version"],
            entry["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for entry in found
    )


def main() -> None:
    Parser(__doc__).parse_args()
    lines = [
        f"# Python {platform.python_version()}, {platform.system()} {platform.machine()}; "
        "made by scripts/make_lock.py",
        *(f"{n}=={v} --hash=sha256:{digest}" for n, v, digest in files_of(installed())),
    ]
    path = ROOT / "requirements.lock"
    write_atomically(path, "".join(f"{line}\n" for line in lines))
    print(path)


if __name__ == "__main__":
    run(main)
