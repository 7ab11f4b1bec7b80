"""Compiling, keeping and loading the machine code, where each step may go wrong."""

import hashlib
import os
import shutil
import stat
import time
import warnings
from pathlib import Path

import pytest
from tiny import tiny_t5

from bild import BildError
from bild.engines import build, make_engine

pytestmark = pytest.mark.skipif(
    build.find_compiler() is None, reason="no C++ compiler on this machine"
)


@pytest.fixture(scope="module")
def real():
    """This machine's library, for compilers that only copy it."""
    return build.load().path


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache folder, and a process that has loaded nothing."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BILD_CACHE", str(folder))
    build.load.cache_clear()
    yield folder
    build.load.cache_clear()


@pytest.fixture
def compiler(monkeypatch, tmp_path, real):
    """`compiler(script)` makes that shell script CXX; $out is where the library has to go, $real
    a library. Returned is a list of one line a call, but for those that ask for the version."""

    def install(script, version="echo a compiler"):
        path, log = tmp_path / "cxx", tmp_path / "calls"
        path.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then {version}; exit 0; fi\n'
            f'echo "$@" >> {log}\nfor out; do :; done\nreal={real}\n{script}\n'
        )
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        return lambda: log.read_text().splitlines() if log.exists() else []

    return install


COPY = 'cp "$real" "$out"'


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_library_is_compiled_once_and_kept_in_private(cache, compiler):
    calls = compiler(COPY)
    first = build.load()
    build.load.cache_clear()
    assert build.load().path == first.path
    assert len(calls()) == 1
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert left_in(cache) == [first.path.name]
    assert hashlib.sha256(first.path.read_bytes()).hexdigest().startswith(first.path.stem[-32:])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: os.truncate(path, 50_000), id="cut off"),
        pytest.param(lambda path: os.truncate(path, 0), id="empty"),
        pytest.param(lambda path: path.write_text("no library"), id="text"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), id="one byte"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to("nowhere")), id="dangling link"),
        pytest.param(lambda path: path.chmod(0o666), id="writable by all"),
    ],
)
def test_a_library_that_is_not_as_it_was_made_is_made_again(cache, compiler, damage):
    """Half a library ends the process when it is loaded."""
    calls = compiler(COPY)
    path = build.load().path
    copy = path.read_bytes()
    replacement = path.with_suffix(".new")  # the one that is loaded must stay as it is
    shutil.copy(path, replacement)
    os.replace(replacement, path)
    damage(path)
    build.load.cache_clear()
    assert build.load().path == path
    assert path.read_bytes() == copy
    assert len(calls()) == 2


def test_a_whole_library_that_cannot_be_loaded_is_made_again_once(cache, compiler):
    """As one from another machine, or on a file system without execution."""
    calls = compiler(COPY)
    path = build.load().path
    content = b"of another machine"
    path.unlink()
    key = path.stem.rpartition("-")[0]
    other = cache / f"{key}-{hashlib.sha256(content).hexdigest()[:32]}.so"
    other.write_bytes(content)
    build.load.cache_clear()
    assert build.load().path == path
    assert len(calls()) == 2


BROKEN = [
    pytest.param('echo rubbish > "$out"', "cannot be loaded", id="rubbish"),
    pytest.param('head -c 50000 "$real" > "$out"; exit 1', "exit code 1", id="fails half-way"),
    pytest.param("true", "left no library", id="writes nothing"),
    pytest.param(
        "printf 'note: it \\344\\nx.cpp:1: error: no such thing\\nmore\\n'; exit 1",
        "cannot compile the engine: x.cpp:1: error: no such thing;",
        id="a note first, not in UTF-8",
    ),
]


@pytest.mark.parametrize(("script", "complaint"), BROKEN)
def test_a_compiler_that_does_not_work_is_named_and_auto_runs_without(
    cache, compiler, script, complaint
):
    compiler(script)
    model = tiny_t5(width=32, head_width=16)
    with pytest.raises(BildError, match=complaint) as caught:
        make_engine(model, compile=True)
    assert "compile=False" in str(caught.value)
    assert "\n" not in str(caught.value)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert str(make_engine(model)) == "fast, float32, not compiled"
    assert [complaint in str(w.message) for w in warned] == [True]
    assert left_in(cache) == []


def test_a_file_that_is_no_program_is_no_compiler(cache, monkeypatch, tmp_path):
    program = tmp_path / "cxx"
    program.write_bytes(b"\x00\x01")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    with pytest.raises(BildError, match="cannot be started"):
        build.load()


@pytest.mark.parametrize("when", ["version", "compile"])
def test_a_compiler_that_hangs_is_ended_with_its_children(
    cache, compiler, monkeypatch, tmp_path, when
):
    child = tmp_path / "child"
    hang = f"sh -c 'echo $$ > {child}; exec sleep 600'"
    if when == "version":
        compiler(COPY, version=hang)
        monkeypatch.setattr(build, "VERSION_SECONDS", 0.5)
    else:
        compiler(hang)
        monkeypatch.setattr(build, "COMPILE_SECONDS", 0.5)
    with pytest.raises(BildError, match=r"has not finished after 0\.5 s"):
        build.load()
    pid = int(child.read_text())
    for _ in range(100):
        if not running(pid):
            break
        time.sleep(0.05)
    assert not running(pid)


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("value", ["", "  "])
def test_a_blank_cxx_is_none(monkeypatch, value):
    monkeypatch.delenv("CXX", raising=False)
    found = build.find_compiler()
    monkeypatch.setenv("CXX", value)
    assert build.find_compiler() == found


def test_cxx_may_have_arguments_and_must_be_a_command(monkeypatch):
    monkeypatch.setenv("CXX", "env 'A B'=1 g++")
    assert build.find_compiler() == ("env", "A B=1", "g++")
    monkeypatch.setenv("CXX", "''")
    assert build.find_compiler() is None
    monkeypatch.setenv("CXX", "'g++")
    with pytest.raises(BildError, match='CXX is "\'g\\+\\+", which is no command'):
        make_engine(tiny_t5(width=32, head_width=16), compile=True)


def test_where_libraries_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("BILD_CACHE", "")
    assert build._cache_folder() == tmp_path / ".cache" / "bild"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert build._cache_folder() == tmp_path / "shared" / "bild"
    monkeypatch.setenv("BILD_CACHE", "~/mine")
    assert build._cache_folder() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BILD_CACHE", "here")
    assert build._cache_folder() == tmp_path / "here"  # never looked for on the loader's own path


def test_a_user_without_a_home_needs_none_or_is_told(monkeypatch, tmp_path):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(build.Path, "home", nobody)
    monkeypatch.delenv("BILD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build._cache_folder() == tmp_path / "bild"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(BildError, match="name one in BILD_CACHE"):
        build._cache_folder()


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(cache, compiler, mode):
    calls = compiler(COPY)
    cache.mkdir()
    cache.chmod(mode)
    with pytest.raises(BildError, match="which can be written by others"):
        build.load()
    assert calls() == []
    assert left_in(cache) == []


def test_a_folder_of_another_user_is_refused(cache, compiler, monkeypatch):
    calls = compiler(COPY)
    build.load()
    build.load.cache_clear()
    if os.geteuid() == 0:
        os.chown(cache, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(BildError, match="which belongs to another user"):
        build.load()
    assert len(calls()) == 1


def test_a_library_of_another_user_is_not_run(cache, compiler, monkeypatch):
    calls = compiler(COPY)
    path = build.load().path
    build.load.cache_clear()
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)
    assert build.load().path == path
    assert (path.stat().st_uid, len(calls())) == (0, 2)


def test_what_a_killed_compiler_left_is_swept(cache, compiler):
    compiler(COPY)
    cache.mkdir(mode=0o700)
    old, new, other = (cache / n for n in (f"{build.WORKSHOP}a", f"{build.WORKSHOP}b", "build-c"))
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "library.so").write_text("half")
    day_ago = time.time() - 86400
    os.utime(old, (day_ago, day_ago))
    os.utime(other, (day_ago, day_ago))
    path = build.load().path
    assert left_in(cache) == sorted((new.name, other.name, path.name))


REFUSES = 'for flag; do if [ "$flag" = %s ]; then exit 1; fi; done; exec %s "$@"'


def test_a_library_compiled_for_less_says_so(cache, compiler, monkeypatch):
    flag = build.NATIVE
    monkeypatch.delenv("CXX", raising=False)
    compiler(REFUSES % (flag, build.find_compiler()[0]))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        engine = make_engine(tiny_t5(width=32, head_width=16))
    assert str(engine) == f"fast, float32, compiled without {flag}"
    assert [f"refuses {flag}, so that it does not use" in str(w.message) for w in warned] == [True]


def test_a_change_of_any_source_makes_another_library(monkeypatch, tmp_path):
    sources = tmp_path / "native"
    shutil.copytree(build.SOURCES, sources)
    (sources / "__pycache__").mkdir(exist_ok=True)
    monkeypatch.setattr(build, "SOURCES", sources)
    keys = {build._key(["true"])}
    names = [path.name for path in sources.iterdir() if path.is_file()]
    for name in names:
        with open(sources / name, "a") as file:
            file.write("\n// another line\n")
        keys.add(build._key(["true"]))
    assert set(names) >= {build.MAIN, "products.h", "layers.h", "team.h"}
    assert len(keys) == len(names) + 1
    assert build._key(["true", "-m32"]) not in keys
