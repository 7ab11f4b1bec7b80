"""Where a record comes from: our own commit or none, and everything that differs from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import ROOT
from records import run_record

from bild import BildError
from bild.config import EvalConfig
from bild.evaluation import environment as places
from bild.evaluation.environment import (
    changed_files,
    code_digest,
    environment,
    peak_memory,
    require_clean_tree,
)
from bild.evaluation.record import check_record

REAL = changed_files  # the tests' own fixture looks away


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small repository that holds a package of this name."""
    root = tmp_path / "checkout"
    (root / "bild").mkdir(parents=True)
    (root / "bild" / "__init__.py").write_text("")
    (root / "README.md").write_text("one")
    (root / ".gitignore").write_text("out/\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    monkeypatch.setattr(places, "ROOT", root)
    monkeypatch.setattr(places, "changed_files", REAL)
    return root


def test_environment_names_everything_that_seconds_depend_on_and_no_path():
    env = environment(torch.device("cpu"), ["sacrebleu", "no-such-library"])
    assert env.versions["torch"] == torch.__version__
    assert {"transformers", "numpy", "sacrebleu"} < set(env.versions)
    assert "no-such-library" not in env.versions
    assert env.threads == torch.get_num_threads()
    assert env.device == "cpu"
    assert env.processor
    assert env.load_average >= 0
    assert len(env.code) == 64
    assert "/work" not in json.dumps(env.__dict__)
    assert str(Path.home()) not in json.dumps(env.__dict__)
    assert peak_memory(torch.device("cpu")).host_bytes > 10**8


@pytest.mark.parametrize("name", ["threads", "commit", "code", "device", "processor", "python"])
def test_each_of_them_makes_another_place(name):
    env = environment(torch.device("cpu"))
    assert replace(env, **{name: "other"}).place() != env.place()
    assert replace(env, resumed_after=7).place() == env.place()
    assert replace(env, load_average=7.0).place() == env.place()


def test_a_clean_tree_may_make_records(checkout):
    assert changed_files() == []
    require_clean_tree(Path("run.json"))
    env = environment(torch.device("cpu"))
    assert (len(env.commit), env.dirty) == (40, False)
    (checkout / "out").mkdir()
    (checkout / "out" / "run.json").write_text("{}")  # ignored
    (checkout / "results" / "demo").mkdir(parents=True)
    (checkout / "results" / "demo" / "run.json").write_text("{}")  # the record before this one
    require_clean_tree(Path("run.json"))
    assert environment(torch.device("cpu")).dirty is False


@pytest.mark.parametrize(
    "name", ["README.md", "bild/__init__.py", "bild/new.py", "a b.txt", "results.json"]
)
def test_a_changed_or_unknown_file_is_named(checkout, name):
    (checkout / name).write_text("two")
    with pytest.raises(BildError) as error:
        check_record(checkout / "run.json")
    assert f"{name} differ from it: commit or stash them" in str(error.value)
    assert environment(torch.device("cpu")).dirty is True


def test_of_many_changed_files_some_are_named(checkout):
    for i in range(9):
        (checkout / f"new{i}.py").write_text("")
    with pytest.raises(BildError, match=r"new4\.py and 4 more differ"):
        require_clean_tree(Path("run.json"))


def test_another_repository_is_not_taken_for_ours(checkout, monkeypatch):
    """A package installed below somebody's project has no commit, whatever theirs is."""
    inner = checkout / ".venv" / "lib"
    shutil.copytree(checkout / "bild", inner / "bild")
    monkeypatch.setattr(places, "ROOT", inner)
    env = environment(torch.device("cpu"))
    assert (env.commit, env.dirty) == (None, None)
    with pytest.raises(BildError, match="does not run in a git checkout of its own"):
        require_clean_tree(Path("run.json"))
    # At the top of theirs, but not one of its files.
    git(checkout, "rm", "-rq", "--cached", "bild")
    git(checkout, "commit", "-qm", "less")
    monkeypatch.setattr(places, "ROOT", checkout)
    assert environment(torch.device("cpu")).commit is None


def test_the_sources_are_known_without_git(tmp_path, monkeypatch):
    before = code_digest()
    shutil.copytree(ROOT / "bild", tmp_path / "bild", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(places, "ROOT", tmp_path)
    assert code_digest() == before
    (tmp_path / "bild" / "new.py").write_text("")
    assert code_digest() != before


# ------------------------------------------------------------------------------ --record


def test_a_committed_record_is_not_replaced_by_one_of_other_settings(checkout):
    path = checkout / "results" / "run.json"
    path.parent.mkdir()
    record = run_record(fallback=0.2)
    record.save(path)
    check_record(path, replace(record.config, large="elsewhere", max_new_tokens=None))  # unknown
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "a record")
    check_record(path, record.config)
    asked = EvalConfig("demo", "unaligned", replace(record.config.bild, fallback_threshold=0.4))
    with pytest.raises(BildError) as error:
        check_record(path, asked)
    assert "its bild fallback_threshold is 0.2, not 0.4" in str(error.value)
    assert "remove that one first" in str(error.value)


def test_a_dirty_tree_is_refused_before_torch_is_there(tmp_path):
    code = (
        "import sys; from pathlib import Path; from bild.evaluation import environment as e\n"
        "from bild.evaluation.record import check_record\n"
        "e.changed_files = lambda: ['a.py']\n"
        f"try: check_record(Path({str(tmp_path / 'r.json')!r}))\n"
        "except ValueError as error: print('torch' in sys.modules, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("False --record ")
    assert "a.py differ from it" in done.stdout
