"""Records that can be made again: the manifest, what is skipped, left out, and what fails."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bild import BildError
from bild.evaluation import remake as module
from bild.evaluation.environment import ROOT
from bild.evaluation.remake import MANIFEST, read_manifest, remake

RESULTS = ROOT / "results"
BY_HAND = {"demo/near_duplicates.json"}  # a check of the shipped sentences, not a measurement

THREE = """
[[record]]
file = "a.json"
minutes = 1
command = "scripts/x.py --one 'two three'"

[[record]]
file = "b/b.json"
minutes = 2
command = "scripts/y.py --data-file {data}/b.jsonl"
needs = ["{data}/b.jsonl"]

[[record]]
file = "b/c.json"
minutes = 3
command = "scripts/z.py"
"""


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A manifest of three; `ran` has the commands, which make records of commit "now"."""
    (tmp_path / MANIFEST).write_text(THREE)
    monkeypatch.setattr(module, "head_commit", lambda: "now")
    ran = []

    def run(command, cwd, check):
        ran.append([str(part).removeprefix(f"{ROOT}/") for part in command[1:]])
        path = Path(command[-1])
        if path.name == "c.json" and len(ran) < 4:
            return subprocess.CompletedProcess(command, 2)
        path.write_text(json.dumps({"env": {"commit": "now"}}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(module.subprocess, "run", run)
    return tmp_path, ran


def test_each_is_made_once_a_commit_and_failures_again(results, tmp_path, capsys):
    folder, ran = results
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(BildError, match=r"not made: b/c\.json; the same command tries"):
        remake(folder, ["*"], str(tmp_path))
    assert ran == [
        ["scripts/x.py", "--one", "two three", "--record", str(folder / "a.json")],
        [
            *("scripts/y.py", "--data-file", str(tmp_path / "b.jsonl")),
            *("--record", str(folder / "b" / "b.json")),
        ],
        ["scripts/z.py", "--record", str(folder / "b" / "c.json")],
    ]
    remake(folder, ["*"], str(tmp_path))
    assert [command[0] for command in ran[3:]] == ["scripts/z.py"]
    assert "1/3 a.json: made" in capsys.readouterr().out


def test_records_of_another_commit_are_made_again(results):
    folder, ran = results
    (folder / "a.json").write_text(json.dumps({"env": {"commit": "then"}}))
    remake(folder, ["a*"], None)
    assert len(ran) == 1


def test_what_needs_data_that_are_not_there_is_left_out(results, capsys):
    folder, ran = results
    remake(folder, ["b/b*"], None)
    remake(folder, ["b/b*"], str(folder / "nowhere"))
    assert ran == []
    said = capsys.readouterr().out
    assert "left out: b/b.json (needs BILD_DATA_ROOT, which is not set)" in said
    assert f"needs {folder / 'nowhere' / 'b.jsonl'}" in said


def test_what_needs_a_gpu_is_left_out_without_one(results, monkeypatch, capsys):
    folder, ran = results
    (folder / MANIFEST).write_text(THREE + "gpu = true\n")
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    remake(folder, ["b/c*"], None)
    assert ran == []
    assert "left out: b/c.json (needs a GPU)" in capsys.readouterr().out
    monkeypatch.setattr(module, "has_gpu", lambda: True)
    with pytest.raises(BildError, match=r"not made: b/c\.json"):
        remake(folder, ["b/c*"], None)
    assert len(ran) == 1


def test_a_list_makes_nothing_and_unknown_names_are_refused(results):
    folder, ran = results
    remake(folder, ["*"], None, only_list=True)
    assert ran == []
    with pytest.raises(BildError, match="no record is called d; --list names them"):
        remake(folder, ["d"], None)


@pytest.mark.parametrize("text", ["", "[[record]]\nfile = 'a'\n", "not toml", "record = 3"])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BildError, match="is not a list of records"):
        read_manifest(tmp_path / MANIFEST)


def test_every_record_here_can_be_made_again():
    listed = {entry.file for entry in read_manifest(RESULTS / MANIFEST)}
    there = {p.relative_to(RESULTS).as_posix() for p in RESULTS.rglob("*.json")}
    there = {name for name in there if not name.startswith("published/")} - BY_HAND
    assert there <= listed


@pytest.mark.parametrize("entry", read_manifest(RESULTS / MANIFEST), ids=lambda e: e.file)
def test_every_command_is_one_that_its_script_takes(entry):
    script, *arguments = shlex.split(entry.command)
    helped = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=True
    ).stdout
    for flag in (a for a in arguments if a.startswith("--")):
        assert re.search(rf"{flag}\b", helped), flag
    assert "--record" in helped
