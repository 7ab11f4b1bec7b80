"""The repository itself: nothing secret or oversized in it, and a README that tells the truth."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|home|root|Users|tmp)/")


def tracked():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    ).stdout
    if not listed:
        pytest.skip("not a git checkout")
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_secrets_no_machine_paths_no_oversized_files():
    total = 0
    for path in tracked():
        size = path.stat().st_size
        total += size
        assert size < 45e6, path
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert not SECRET.search(text), path
        if path.suffix in {".json", ".jsonl", ".md", ".toml", ".sh", ".yaml", ".cff"}:
            assert not MACHINE_PATH.search(text), path
    assert total < 90e6


def test_the_readmes_tree_names_every_wing_and_script():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("## Layout") :]
    wings = [path.parent for path in (ROOT / "bild").glob("*/__init__.py")]
    for path in [*wings, *(ROOT / "scripts").glob("*.py")]:
        assert path.stem in tree, f"{path.name} is not in the README's tree"


def test_launchers_are_three_lines_and_executable():
    launchers = sorted(ROOT.glob("run_*.sh"))
    assert len(launchers) == 6
    for launcher in launchers:
        lines = launcher.read_text().splitlines()
        assert len(lines) == 3
        assert lines[1] == "set -euo pipefail"
        assert launcher.stat().st_mode & 0o111
