"""JSON files of any damage are refused in one sentence, and read in one place."""

from __future__ import annotations

import ast

import pytest
from test_architecture import TREES

from bild import json_files
from bild.errors import BildError
from bild.json_files import read_json


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (b"", "line 1 is not JSON"),
        (b'{"a": 1,\n"b": }', "line 2 is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1]", "holds no object but a list"),
        (b"null", "holds no object but a NoneType"),
        (b"{" + b" " * 100 + b"}", "is longer than 100 bytes"),
        (None, "cannot be read (No such file"),
        ("folder", "cannot be read (Is a directory"),
    ],
)
def test_damage_is_told_in_one_sentence(tmp_path, monkeypatch, content, needle):
    path = tmp_path / "x.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
        if "longer" in needle:
            monkeypatch.setattr(json_files, "LARGEST_BYTES", 100)
    with pytest.raises(BildError) as error:
        read_json(path, "take another")
    said = str(error.value)
    assert said.startswith(str(path))
    assert needle in said
    assert said.endswith("; take another")
    assert "\n" not in said


def test_what_is_whole_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"ü": [1, null]}', encoding="utf-8")
    assert read_json(path, "") == {"ü": [1, None]}


def is_of_json(node, name):
    return isinstance(node, ast.Call) and ast.unparse(node.func) == f"json.{name}"


def test_whole_json_files_are_read_in_one_place():
    """Lines are read elsewhere, each refused by its number."""
    found = [
        f"{name} line {node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if is_of_json(node, "load")
        or (is_of_json(node, "loads") and "read_" in ast.unparse(node.args[0]))
    ]
    assert found == []
    assert "json.loads" in ast.unparse(TREES["bild.json_files"])
