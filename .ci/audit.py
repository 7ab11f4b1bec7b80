"""Whether a known hole is in a package of requirements.lock: asks the index with pip-audit.

    python .ci/audit.py

Exit code 1 names each hole and the version without it. Without an answer, as without a network, it
says so in a sentence and ends with 0: what is checked is the packages, not the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
COMMAND = (
    "--requirement", str(LOCK), "--disable-pip", "--require-hashes", "--format", "json",
    "--progress-spinner", "off", "--timeout", "10",
)  # fmt: skip
SECONDS = 300


def answers() -> list[dict[str, Any]]:
    """What pip-audit says of each package; nothing where it has no answer."""
    command = [sys.executable, "-m", "pip_audit", *COMMAND]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []
    return found


def report(packages: list[dict[str, Any]]) -> tuple[str, int]:
    """What to print, and the exit code."""
    looked_at = [package for package in packages if "vulns" in package]
    if not looked_at:
        return "known holes: skipped, the package index gave no answer (no network?)", 0
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, "
        f"repaired in {', '.join(hole['fix_versions']) or 'no version'}"
        for package in looked_at
        for hole in package["vulns"]
    ]
    left_out = len(packages) - len(looked_at)
    said = f"known holes: {len(holes)} in {len(looked_at)} packages ({left_out} not known there)"
    return "\n".join([*holes, said]), int(bool(holes))


def main() -> None:
    text, code = report(answers())
    print(text)
    sys.exit(code)


if __name__ == "__main__":
    main()
