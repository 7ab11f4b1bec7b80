"""Files: whole or not at all, never through a link, and nothing lost to a reader or a full disk."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from bild import files
from bild.errors import BildError, is_no_room
from bild.files import append_lines, check_file, read_lines, write_atomically, write_json


def numbers(path):
    return read_lines(path, lambda line: json.loads(line)["n"])


def append(path, *values):
    return list(append_lines(path, values, lambda n: json.dumps({"n": n, "text": "ü"})))


# ------------------------------------------------------------------------------ lines


@pytest.mark.parametrize(
    "torn", [b'{"n": 3', b'{"n": 3, "text": "\xc3', b"\0" * 40, b"{", b'{"n": 3, "text": "\xff'],
    ids=["object", "letter", "zeros", "brace", "bytes"],
)  # fmt: skip
def test_a_torn_last_line_is_left_out_by_the_reader_and_cut_by_the_writer(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    append(path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert numbers(path) == [1, 2]
    assert path.read_bytes() == whole + torn  # a reader never writes
    append(path, 3)
    assert numbers(path) == [1, 2, 3]
    assert path.read_bytes().startswith(whole)


def test_a_whole_last_line_without_its_end_counts(tmp_path):
    path = tmp_path / "lines.jsonl"
    append(path, 1, 2)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert numbers(path) == [1, 2]
    append(path, 3)
    assert numbers(path) == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b'{"n": 1', 1), (b"", 2), (b"\xff", 2), (b'{"m": 1}', 3), (b"[]", 2), (b"null", 1),
        (b'{"n": ' + b"9" * 5000 + b"}", 2), (b"[" * 100_000, 2),
    ],
    ids=["torn", "empty", "bytes", "schema", "list", "null", "number", "nesting"],
)  # fmt: skip
def test_any_other_bad_line_is_refused_by_number_and_nothing_is_lost(tmp_path, line, number):
    path = tmp_path / "lines.jsonl"
    append(path, 1, 2)
    content = path.read_bytes().splitlines()
    content.insert(number - 1, line)
    path.write_bytes(b"".join(c + b"\n" for c in content))
    before = path.read_bytes()
    with pytest.raises(BildError, match=rf"lines\.jsonl, line {number} "):
        numbers(path)
    assert path.read_bytes() == before


def test_a_last_line_that_is_whole_but_of_another_version_is_not_taken_for_torn(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n{"m": 2}')
    with pytest.raises(BildError, match="line 2 is not one that this version has written"):
        numbers(path)
    assert path.read_text() == '{"n": 1}\n{"m": 2}'


def test_a_missing_file_has_no_lines_and_is_made_by_the_writer(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert numbers(path) == []
    assert not path.exists()
    append(path, 1)
    assert numbers(path) == [1]


# ------------------------------------------------------------------------------ a full disk


class FullDisk:
    """The disk takes so many more bytes, then no more."""

    def __init__(self, monkeypatch, room):
        self.room, self.write = room, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, file, content):
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.write(file, bytes(content)[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 5, 18, 40])
def test_a_full_disk_is_one_sentence_and_loses_no_line(monkeypatch, tmp_path, room):
    path = tmp_path / "lines.jsonl"
    append(path, 1)
    with monkeypatch.context() as patch:
        FullDisk(patch, room)
        with pytest.raises(BildError, match=r"cannot write .*lines\.jsonl.*No space left"):
            append(path, 2, 3, 4)
    kept = numbers(path)
    assert kept == [1, 2, 3, 4][: len(kept)]
    append(path, *range(len(kept) + 1, 5))
    assert numbers(path) == [1, 2, 3, 4]


def test_a_full_disk_leaves_the_older_file_as_it_was(monkeypatch, tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"old": 1})

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BildError, match="No space left"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["run.json"]


# ------------------------------------------------------------------------------ links and devices


def test_what_is_no_file_is_never_replaced(tmp_path):
    target, link, pipe = tmp_path / "mine.txt", tmp_path / "link.json", tmp_path / "pipe.json"
    target.write_text("mine")
    link.symlink_to(target)
    os.mkfifo(pipe)
    for path, what in ((link, "is a link"), (pipe, "is a device or a pipe"), (tmp_path, "folder")):
        with pytest.raises(BildError, match=what):
            check_file(path, "--record")
        with pytest.raises(BildError, match=what):
            write_atomically(path, "{}")
        with pytest.raises(BildError, match=what):
            append(path, 1)
    with pytest.raises(BildError, match="is a device or a pipe"):
        check_file(files.Path(os.devnull), "--record")
    assert target.read_text() == "mine"
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_scratch_file_cannot_be_guessed_and_is_not_left(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("run.json.tmp", ".run.json.tmp"):
        (tmp_path / name).symlink_to(victim)
    opened = []
    original = os.open
    monkeypatch.setattr(
        os, "open", lambda p, *a, **k: opened.append(str(p)) or original(p, *a, **k)
    )
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    scratch = [p for p in opened if p.startswith(str(tmp_path))]
    assert len(set(scratch)) == 2
    assert victim.read_text() == "mine"
    assert json.loads(path.read_text()) == {"a": 2}
    assert not any(os.path.exists(p) for p in scratch)


def test_what_a_killed_writer_left_is_swept_and_what_another_writes_is_not(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    left = tmp_path / ".unfinished-run.json-0123456789abcdef"
    left.write_text("{")
    hidden = tmp_path / ".mine"
    hidden.write_text("mine")
    ours = []
    replace = os.replace

    def another_writes(scratch, target):
        """While the first is at it, a second one sweeps and writes to the same folder."""
        if not ours:
            ours.append(scratch)
            files.sweep.cache_clear()
            write_json(tmp_path / "other.json", {"b": 1})
            assert os.path.exists(scratch)
        replace(scratch, target)

    monkeypatch.setattr(os, "replace", another_writes)
    write_json(path, {"a": 1})
    assert sorted(os.listdir(tmp_path)) == [".mine", "other.json", "run.json"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_system_takes_is_one_sentence(tmp_path, name):
    with pytest.raises(BildError, match="cannot be written"):
        check_file(tmp_path / name, "--record")


def test_numbers_that_json_has_not_are_kept(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"a": [float("nan"), {"b": float("inf")}], "c": (-float("inf"), 1.5)})

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == {"a": ["nan", {"b": "inf"}], "c": ["-inf", 1.5]}


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 25728 vs 25620",
        "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file x",
        "No space left on device (os error 28)",
        "basic_ios::clear: iostream error",
    ],
)
def test_what_libraries_make_of_a_full_disk_is_known(said):
    """Their own code meets it, and no OSError reaches Python."""
    assert is_no_room(RuntimeError(said))
    assert not is_no_room(RuntimeError("PytorchStreamReader failed reading zip archive"))
