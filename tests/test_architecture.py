"""The house: which module may import which, and how long a file and a function may be.

Imports are read from the source, those inside functions and under TYPE_CHECKING included, so that
nothing is imported to find out, and nothing hides.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT

# From the ground up. A module imports from its own line and from lines above it here.
LAYERS = (
    (
        *("errors", "_version", "config", "files", "json_files", "yaml_files", "flags", "imports"),
        *("parser", "drawing", "pictures", "processes", "progress", "sharing", "shortage"),
        *("together", "visible", "policy", "acceptance", "fallback", "rules", "stopping"),
    ),
    ("checkpoints", "tasks"),
    ("engines",),
    ("generation",),
    ("evaluation", "outputs", "doctor"),
    ("tuning", "benchmark", "training"),
    ("show", "serve"),
    ("cli", "commands", "__main__", "bild"),  # "bild" is bild/__init__.py: the public names
)  # fmt: skip
LEVEL = {wing: level for level, wings in enumerate(LAYERS) for wing in wings}
# Wings of one line do not know each other, but for these.
NEIGHBOURS = {
    ("tasks", "checkpoints"), ("serve", "show"), ("commands", "cli"), ("__main__", "commands"),
}  # fmt: skip

FILE_LINES = 400
FUNCTION_LINES = 60  # without the docstring

# What is still too long, as it stands. Sizes here may only become smaller, and the lists shorter.
LONG_FILES = {}
LONG_FUNCTIONS = {}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "bild").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports_of(name: str) -> set[str]:
    """The modules of bild that a module names in an import, wherever the import stands."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: write imports from the top"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in FILES else str(node.module))
    ours = {module for module in found if module.split(".")[0] == "bild"}
    assert ours <= set(FILES), f"{name} imports {sorted(ours - set(FILES))}, which is not there"
    return ours - {name}


IMPORTS = {name: imports_of(name) for name in FILES}


def wing(module: str) -> str:
    return module.split(".")[1] if "." in module else "bild"


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The groups of nodes of which each reaches every other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [*graph[start]]
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph[node]
        reached[start] = seen
    return {
        frozenset({other for other in seen if node in reached[other]})
        for node, seen in reached.items()
        if node in seen
    }


def functions_of(name: str) -> Iterator[tuple[str, int]]:
    """Every function of a module, with its lines less those of its docstring."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                path = f"{prefix}.{child.name}"
                if not isinstance(child, ast.ClassDef):
                    lines = child.end_lineno - child.lineno + 1
                    if ast.get_docstring(child) is not None:
                        lines -= child.body[0].end_lineno - child.body[0].lineno + 1
                    yield path, lines
                yield from walk(child, path)
            else:
                yield from walk(child, prefix)

    return walk(TREES[name], name)


# ------------------------------------------------------------------------------- who imports whom


def test_every_wing_has_its_place():
    assert {wing(name) for name in FILES} == set(LEVEL)
    assert len(LAYERS) <= 8


@pytest.mark.parametrize("name", FILES)
def test_no_module_imports_upwards(name):
    here = wing(name)
    for other in sorted(IMPORTS[name]):
        there = wing(other)
        if there != here:
            assert LEVEL[there] <= LEVEL[here], f"{name} imports {other}, which stands above it"
            free = LEVEL[there] < LEVEL[here] or LEVEL[here] == 0 or (here, there) in NEIGHBOURS
            assert free, f"{name} imports {other}, its neighbour"


def test_no_modules_import_each_other_in_a_circle():
    assert circles(IMPORTS) == set()


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {frozenset("bc")}
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()


def test_imports_are_found_wherever_they_stand():
    assert {"bild.generation.pair", "bild.config"} <= IMPORTS["bild"]  # under TYPE_CHECKING
    name = "bild.commands.tokenizer"
    inside = {n.module for f in TREES[name].body if isinstance(f, ast.FunctionDef)
              for n in ast.walk(f) if isinstance(n, ast.ImportFrom)}  # fmt: skip
    ours = {module for module in inside if module.startswith("bild.")}
    assert ours
    assert ours <= IMPORTS[name]


@pytest.mark.parametrize(
    "module",
    [
        "bild",
        "bild.cli",
        "bild.commands.main",
        "bild.evaluation.record",
        "bild.files",
        "bild.generation.stats",
        "bild.show.pages",
        "bild.show.tables",
        "bild.tasks.registry",
    ],
)
def test_no_torch_is_loaded_for(module):
    """Records and tables are read, and mistakes in arguments found, in a fraction of a second."""
    heavy = ("torch", "transformers", "datasets", "matplotlib", "gradio", "optuna", "scipy")
    code = f"import sys, {module}; print(*(n for n in {heavy} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# --------------------------------------------------------------------------------------- how long


def test_no_exception_outlives_its_reason():
    files = {n for n, p in FILES.items() if len(p.read_text("utf-8").splitlines()) > FILE_LINES}
    functions = {f for n in FILES for f, lines in functions_of(n) if lines > FUNCTION_LINES}
    assert set(LONG_FILES) <= files
    assert set(LONG_FUNCTIONS) <= functions


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_not_too_long(name):
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= LONG_FILES.get(name, FILE_LINES)


@pytest.mark.parametrize("name", FILES)
def test_a_function_is_not_too_long(name):
    for function, lines in functions_of(name):
        assert lines <= LONG_FUNCTIONS.get(function, FUNCTION_LINES), function
