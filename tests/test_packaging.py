"""The wheel, built without a network, in an environment that holds only what the core needs."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from functools import cache
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from commands import ROOT
from packaging.requirements import Requirement
from test_architecture import TREES, wing
from toy import save_model, save_tokenizer

# What may be imported as a wing is imported; other packages are, where they are used.
EXTRAS = {
    "tasks": "eval",
    "evaluation": "eval",
    "tuning": "eval",
    "benchmark": "eval",
    "training": "train",
    "show": "show",
    "serve": "serve",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOP_LEVEL = metadata.packages_distributions()  # of a module's name, who brings it

GENERATE = """
import sys
import torch
from tiny import tiny_t5
import bild

assert "site-packages" in bild.__file__, bild.__file__
large, small = tiny_t5(0, width=64, head_width=16), tiny_t5(0, width=64, head_width=16, noise=0.3)
pair = bild.BiLDModel(large, small, engine="fast", compile=True)
source = torch.tensor([[5, 9, 3, 11, 1]])
output = pair.generate(source, bild_config=bild.BiLDConfig(1.1, 2.0), max_new_tokens=12)
assert torch.equal(output.sequences, large.generate(source, do_sample=False, max_new_tokens=12))
print(output.stats.generated_tokens)
"""


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def needed(requirements: list[str], extras: frozenset[str] = frozenset({""})) -> set[str]:
    """The distributions that pip would install for `requirements`, as they are installed here."""
    found: set[str] = set()
    waiting = [(line, extras) for line in requirements]
    while waiting:
        line, active = waiting.pop()
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": e}) for e in active):
            continue
        name = canonical(wanted.name)
        if name not in found:
            found.add(name)
            inner = metadata.requires(name) or []
            waiting += [(line, frozenset(wanted.extras | {""})) for line in inner]
    return found


@cache
def extra(name: str) -> tuple[str, ...]:
    """The distributions that an extra names, those of the extras it takes in included."""
    lines: list[str] = []
    for line in PROJECT["optional-dependencies"][name]:
        wanted = Requirement(line)
        inner = wanted.extras if wanted.name == PROJECT["name"] else ()
        lines += [part for other in inner for part in extra(other)] if inner else [line]
    return tuple(lines)


def run(*command: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "BILD_CACHE") if name in os.environ}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1", **more}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tracked():
    """What git knows of bild/, and what a wheel is built from."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "bild", "pyproject.toml", "README.md", "LICENSE"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, tracked):
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked:  # a copy, so that the build leaves nothing in the checkout
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path)
    done = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
        "--wheel-dir", folder, folder / "source", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(tmp_path_factory, wheel):
    """Python of a new environment: the wheel, and of what is installed here the core's own."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for name in needed(PROJECT["dependencies"]):
        distribution = metadata.distribution(name)
        for file in distribution.files:
            top = file.parts[0]
            target = Path(distribution.locate_file(top)).resolve()
            if top not in {"..", "__pycache__"} and not (packages / top).exists():
                (packages / top).symlink_to(target)
    python = folder / "bin/python"
    done = run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel,
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def test_the_wheel_has_every_file_of_the_package(wheel, tracked):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("bild/")}
    assert names == {name for name in tracked if name.startswith("bild/")}
    assert {"bild/py.typed", "bild/show/templates/race.html"} <= names
    assert any(name.endswith(".cpp") for name in names)


def test_its_name_is_not_that_of_another_project(wheel):
    assert wheel.name.startswith("big_little_decoder-")
    assert "big-little-decoder" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_core_alone_generates_on_the_compiled_engine(python, tmp_path):
    (tmp_path / "tiny.py").symlink_to(ROOT / "tests" / "tiny.py")
    (tmp_path / "generate.py").write_text(GENERATE)
    done = run(python, "generate.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


def test_the_command_of_the_wheel_looks_at_the_machine_and_decodes_a_file(python, tmp_path):
    """With the core's packages alone, from a folder that is no checkout."""
    pair = tmp_path / "pair"
    tokenizer = save_tokenizer(pair / "tokenizer")
    for seed, name in enumerate(("large", "small")):
        save_model(pair / name, tokenizer, seed, layers=1, decoder_layers=1)
    command = python.with_name("bild")
    names = ("--large", pair / "large", "--small", pair / "small")
    done = run(command, "doctor", "--json", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    levels = {f["subject"]: f["level"] for f in json.loads(done.stdout)["findings"]}
    assert levels["self-test"] == "ok"
    assert levels["extras"] == "note"
    (tmp_path / "in.txt").write_text("Der Hund ist alt.\n\nDer Baum ist neu.\n")
    done = run(command, "generate", "in.txt", "-o", "out.txt", *names, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len((tmp_path / "out.txt").read_text().split("\n")) == 4
    done = run(command, "generate", "in.txt", "-o", "2.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert "the shipped pair comes with a checkout and is not here" in done.stderr


@pytest.mark.parametrize(
    ("wing", "name"), [("evaluation", "eval"), ("show", "show"), ("training", "train")]
)
def test_a_wing_without_its_extra_names_it_in_a_sentence(python, tmp_path, wing, name):
    done = run(python, "-c", f"import bild.{wing}", cwd=tmp_path)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("bild.errors.BildError: ")
    assert f"not installed; pip install -e '.[{name}]'" in said


def test_a_script_without_an_extra_ends_in_one_sentence(python, tmp_path):
    done = run(python, ROOT / "scripts" / "make_tables.py", "--check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .* not installed; .*\n", done.stderr), done.stderr


@pytest.mark.parametrize("module", TREES)
def test_what_a_module_imports_at_once_is_in_the_core_or_its_wings_extra(module):
    allowed = needed(PROJECT["dependencies"])
    if wing(module) in EXTRAS:
        allowed |= needed([*extra(EXTRAS[wing(module)])])
    for node in TREES[module].body:
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                names = [node.module]
            case _:
                names = []
        for name in {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, "bild"}:
            assert {canonical(d) for d in TOP_LEVEL[name]} & allowed, f"{module} imports {name}"
