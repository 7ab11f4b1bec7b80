"""The repository itself: nothing secret or oversized in it, and a README that tells the truth."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import run_here, script
from conftest import complain_of_skip

import bild

ROOT = Path(__file__).resolve().parent.parent
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|\bsk-[A-Za-z0-9_-]{20,}"
)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
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


def secrets_in(lines):
    return [line for line in lines if SECRET.search(line) or PRIVATE_KEY.search(line)]


def test_no_secret_was_ever_committed():
    """In the whole history as far as it is here: what was taken out later can still be read."""
    command = ["git", "-C", str(ROOT), "log", "-p", "--unified=0", "--no-color", "--no-ext-diff"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as log:
        found = secrets_in(line for line in log.stdout if line.startswith("+"))
    if log.returncode:
        pytest.skip("not a git checkout")
    assert found == []
    token = "hf_" + "x" * 30
    key = "-----BEGIN RSA PRIVATE " + "KEY-----"
    assert secrets_in(["+nothing", f"+TOKEN = '{token}'", f"+{key}"]) == [
        f"+TOKEN = '{token}'", f"+{key}",
    ]  # fmt: skip


def test_the_readmes_tree_names_every_wing_and_script():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("## Where things are") :]
    wings = [path.parent for path in (ROOT / "bild").glob("*/__init__.py")]
    for path in [*wings, *(ROOT / "scripts").glob("*.py")]:
        assert path.stem in tree, f"{path.name} is not in the README's tree"


LAUNCHERS = sorted(ROOT.glob("run_*.sh"))


def test_launchers_are_three_lines_and_executable():
    assert len(LAUNCHERS) == 6
    for launcher in LAUNCHERS:
        lines = launcher.read_text().splitlines()
        assert len(lines) == 3
        assert lines[1] == "set -euo pipefail"
        assert launcher.stat().st_mode & 0o111


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose run_eval.py only says what it was given, started from another folder."""
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    for name in ("run_demo.sh", "scripts/python.sh"):
        shutil.copy(ROOT / name, root / name)
    (root / "scripts" / "run_eval.py").write_text("import sys\nprint(sys.argv[1:])\n")
    return root


def write_python(path, name, works=True):
    """A program that says its name and then is Python, or a Python without this project."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run = f'exec "{sys.executable}" "$@"' if works else "exit 1"
    path.write_text(f'#!/bin/sh\n[ "$1" = -P ] || echo {name}\n{run}\n')
    path.chmod(0o755)


def launch(checkout, **more):
    path = f"{checkout}/path:{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), **more}
    command = ["bash", checkout / "run_demo.sh", "unaligned", "0.6 2"]
    return subprocess.run(
        command, cwd=checkout.parent, env=environment, capture_output=True, text=True, check=False
    )


def test_a_launcher_finds_its_environment(checkout):
    given = "['demo', 'unaligned', '0.6 2']\n"
    write_python(checkout / "path" / "python3", "of the path")
    assert launch(checkout).stdout == f"of the path\n{given}"
    write_python(checkout / ".venv/bin/python", "of the checkout")
    assert launch(checkout).stdout == f"of the checkout\n{given}"
    assert launch(checkout, PYTHON="").stdout == f"of the checkout\n{given}"
    write_python(checkout / "mine", "named")
    assert launch(checkout, PYTHON="a checkout/mine").stdout == f"named\n{given}"


@pytest.mark.parametrize("named", [{}, {"PYTHON": "nowhere/python"}], ids=["python3", "named"])
def test_a_launcher_without_an_environment_says_what_to_do(checkout, named):
    write_python(checkout / "path" / "python3", "of the path", works=False)
    done = launch(checkout, **named)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {named.get('PYTHON', 'python3')} is not ")
    assert done.stderr.count("\n") == 1
    assert "make demo" in done.stderr


def test_make_refuses_an_old_python_in_one_sentence(tmp_path):
    write_python(tmp_path / "old", "old", works=False)
    command = ["make", "-C", ROOT, "-B", f"PYTHON={tmp_path / 'old'}", ".venv/installed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: {tmp_path / 'old'} is not Python 3.11 or later" in done.stderr
    assert "Traceback" not in done.stderr


def test_make_names_its_targets():
    done = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    for target in ("demo", "web", "test", "check"):
        assert f"make {target} " in done.stdout


SKIPPED = """
import pytest

@pytest.mark.skipif(True, reason="not installed: a thing")
def test_nothing():
    pass

@pytest.mark.skipif(True, reason="there is a GPU")
def test_on_a_machine_without_a_gpu():
    pass
"""


def test_in_ci_a_skipped_test_is_a_failed_one(tmp_path):
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    environment = {**os.environ, "CI": "true", "PYTHONPATH": f"{ROOT}/tests:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 skipped, 1 error in" in done.stdout
    assert "was skipped, and CI is set: Skipped: not installed: a thing" in done.stdout


def test_elsewhere_a_test_may_be_skipped(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    report = pytest.TestReport(
        "a test", ("file", 1, "a test"), {}, "skipped", ("file", 1, "Skipped: no browser"), "setup"
    )
    complain_of_skip(report)
    assert report.skipped
    monkeypatch.setenv("CI", "true")
    complain_of_skip(report)
    assert report.failed


def test_the_api_reference_is_what_the_docstrings_say():
    """Else run scripts/make_api.py."""
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert page == script("make_api").api_page()
    for name in set(bild.__all__) - {"__version__"}:
        assert f"\n## `{name}`\n" in page


def test_every_record_that_can_be_made_again_is_listed(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    done = run_here(monkeypatch, capsys, "--list", name="make_results").require_success()
    records = tomllib.loads((ROOT / "results/records.toml").read_text(encoding="utf-8"))["record"]
    assert len(records) >= 1
    for record in records:
        assert record["file"] in done.out
