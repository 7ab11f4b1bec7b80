"""README.md and docs/, pasted: every command and Python block runs, what takes long in a tiny mode.

The shell reads the blocks itself, so that loops, quotes and variables mean what they mean to a
reader; what it would start is noted and then run in this process, on the files a reader brings.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import ROOT, run_here, script
from toy import PAIRS, save_model, save_tokenizer

from bild.benchmark import planted
from bild.benchmark.kinds import parse_arms
from bild.checkpoints.drafter import make_drafter
from bild.checkpoints.loading import load_model
from bild.commands import doctor
from bild.commands.main import COMMANDS, module_of
from bild.tasks.registry import TASKS
from bild.training.presets import PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = (
    "README.md",
    "demo/README.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
)
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITH_COMMANDS = [name for name, text in PAGES.items() if "```bash" in text]
WITH_PYTHON = [
    name for name, text in PAGES.items() if "```python" in text and name != "docs/api.md"
]
CODE_SPAN = re.compile(r"`([^`\n]+)`")

# What a reader brings; a page that uses it says "yours, in `folder/`".
BROUGHT = (
    "tatoeba/train.jsonl.gz", "multi30k/train.jsonl.gz", "multi30k/validation.jsonl",
    "multi30k/test_2016_flickr.jsonl", "java_api/train.jsonl", "java_api/validation.jsonl",
    "java_api/deepapi_test.jsonl", "everyday/tatoeba_newer.jsonl.gz",
    "everyday/covost2_de_en.jsonl.gz", "europarl/train.jsonl",
)  # fmt: skip
# What the hub would give; a page that uses it says "from the hub".
FROM_THE_HUB = tuple(f"hub/{task}/validation.jsonl" for task in TASKS if task != "demo")
KEYS = (("de", "en"), ("description", "api"), ("document", "summary"))

# The scripts that are doors to commands, by command.
SCRIPTS = {
    found[1]: path.stem
    for path in sorted((ROOT / "scripts").glob("*.py"))
    if (found := re.search(r"from bild\.commands\.(\w+) import main", path.read_text("utf-8")))
}

# Started by no command here, and where else.
ELSEWHERE = {
    "scripts/web.py": "show/test_web.py",
    "scripts/serve.py": "serve/test_serve.py",
    "scripts/make_tables.py": "show/test_tables.py",
    "scripts/plot_tradeoff.py": "show/test_plots.py",
    "scripts/make_api.py": "test_repository.py",
    "scripts/make_results.py": "test_repository.py",
    ".ci/audit.py": "test_audit.py",
}
PLAIN = ("mkdir", "head", "tail", "sed", "grep", "cat")  # run by the shell itself

TRAINING = ("--max-steps", 2, "--max-length", 12)
TINY = {
    "run_eval": ("--max-new-tokens", 8),
    "search_thresholds": (
        "--max-eval-samples", 3, "--fallbacks", 0.5, 0.7, "--rollbacks", 1, 2, "--budget", 1,
        "--max-new-tokens", 8,
    ),
    "compare_small_models": (
        "--max-eval-samples", 3, "--max-test-samples", 2, "--fallbacks", 0.5, "--rollbacks", 2, 3,
        "--max-new-tokens", 8,
    ),
    "benchmark": (
        "--samples", 1, "--warmup", 0, "--arms", "vanilla-fast@float32,bild-fast@float32",
        "--threads", 1,
    ),
    "demo": ("--samples", 3),
    "finetune": TRAINING,
    "align": (*TRAINING, "--max-new-tokens", 8),
    "train_tokenizer": ("--vocab-size", 44),
    "make_demo_data": ("--held-out", 6, "--vocab-size", 44),
    "measure_agreement": ("--max-new-tokens", 8),
    "show_trace": (),
    "generate": ("--max-new-tokens", 8),
    "make_adversary": (),
    "compare_rules": ("--max-eval-samples", 2, "--max-new-tokens", 8, "--rules", "exact", "regret"),
    "check_duplicates": (),
}  # fmt: skip


def tiny_flags(name: str, arguments: list[str]) -> tuple[object, ...]:
    """What is appended to a command, so that it ends in seconds; a later flag wins."""
    assert name in TINY, f"say in TINY how {name} ends in seconds"
    more: tuple[object, ...] = TINY[name]
    if name == "run_eval":
        if len(list(positionals(arguments))) < 5:
            more += ("--max-eval-samples", 2)
        if arguments[0] != "demo" and "--large" not in arguments:  # test_launchers.py: their own
            more += ("--large", "demo/large", "--small", "demo/small", "--tokenizer", "demo/large")
    if name == "benchmark":
        check_arms(arguments)
        if "--pair" in arguments:
            more += ("--source-tokens", 6)
        if "--lengths" in arguments:
            more += ("--lengths", "4,8")
    return more


def check_arms(arguments: list[str]) -> None:
    """Refuse arms that do not exist; test_benchmark.py runs them, here two take their place."""
    given = dict(pairwise(arguments))
    precisions = given.get("--precisions", "float32").split(",")
    assert parse_arms(given["--arms"].split(","), precisions)


def positionals(arguments):
    """Those before the first flag."""
    for argument in arguments:
        if argument.startswith("--"):
            return
        yield argument


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models in the places of the shipped ones, which test_demo.py runs."""
    folder = tmp_path_factory.mktemp("demo")
    tokenizer = save_tokenizer(folder / "tokenizer")
    for seed, name in enumerate(("large", "small", "small-aligned")):
        # Deep enough to be left early; the encoder as well, for transformers' own generate makes
        # its cache as deep as that.
        depth = 3 if name == "large" else 1
        save_model(
            folder / name,
            tokenizer,
            seed,
            layers=depth,
            decoder_layers=depth,
            width=64,
            head_width=16,
        )
    large = load_model(str(folder / "large"), torch.float32, "cpu")
    make_drafter(large).save_pretrained(folder / "drafter")
    (folder / "sentences.jsonl").symlink_to(ROOT / "demo" / "sentences.jsonl")
    return folder


@pytest.fixture
def reader(tmp_path, monkeypatch, models):
    """A reader's working folder: demo/, an activated .venv, and files brought."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BILD_DATA_ROOT", "hub")
    (tmp_path / "demo").symlink_to(models)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    lines = "".join(
        json.dumps(dict(zip((k for pair in KEYS for k in pair), 3 * pair, strict=True))) + "\n"
        for pair in PAIRS
    ).encode()
    (tmp_path / "out").mkdir()
    for name in (*BROUGHT, *FROM_THE_HUB):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    # The models learn nothing here, so they are small, and a few sentences a step are enough.
    size = {"num_layers": 1, "num_decoder_layers": 1, "d_ff": 64}
    for name, preset in PRESETS.items():
        shape = None if preset.architecture is None else {**preset.architecture, **size}
        tiny = replace(preset, batch_size=4, max_new_tokens=8, architecture=shape)
        monkeypatch.setitem(PRESETS, name, tiny)
    # As in test_benchmark.py: the pairs of the published sizes, made small.
    tiny = {"vocab_size": 900, "d_kv": 32, "d_model": 256, "d_ff": 64, "num_heads": 2}
    for name, shape in planted.SHAPES.items():
        layers = 2 if name.endswith("large") else 1
        monkeypatch.setitem(planted.SHAPES, name, {**shape, **tiny, "num_layers": layers})
    monkeypatch.setattr("bild.benchmark.costs.CEILING_BYTES", 2**22)
    return tmp_path


def commands_of(text: str, folder: Path) -> list[list[str]]:
    """The commands that bash would start for `text` in `folder`; plain tools are run."""
    tools = folder / "plain tools"
    if not tools.exists():
        tools.mkdir()
        for name in PLAIN:
            (tools / name).symlink_to(shutil.which(name))
    noted = folder / "noted"
    noted.write_text("")
    note = 'command_not_found_handle() { printf "%s\\0" $# "$@" >> noted; }\nset -eu\n'
    done = subprocess.run(
        [shutil.which("bash"), "-c", note + text],
        cwd=folder, env={"PATH": str(tools)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), text
    words = iter(noted.read_text(encoding="utf-8").split("\0")[:-1])
    return [[next(words) for _ in range(int(count))] for count in words]


def recipe(target: str) -> list[list[str]]:
    """What `make target` starts once .venv is there, without the paths of its programs."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", target],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines()]
    started = [[word for word in line if "=" not in word or word.startswith("-")] for line in lines]
    return [
        [Path(line[0]).name, *line[1:]]
        for line in started
        if not {"venv", "pip", "touch", "echo"} & {*line}
    ]


WRITES = ("--record", "--output-dir", "--output", "-o", "--html", "--svg")


def execute(command: list[str], run) -> None:
    """Run a command of a page in its tiny mode; `run` takes a script's name and arguments."""
    for flag, value in pairwise(command):
        if flag in WRITES:  # nothing that is committed is overwritten by a reader's command
            assert value.startswith("out/") or value == "-", shlex.join(command)
    match command:
        case ["make", target]:
            for part in recipe(target):
                execute(part, run)
        case ["python", file, *_] if file in ELSEWHERE:
            tests = (ROOT / "tests" / ELSEWHERE[file]).read_text()
            assert re.search(rf'{Path(file).stem}(\.py)?"', tests)
        case ["python", "tests/faults/injecting.py"]:
            pass  # faults/test_injections.py, with fewer kills
        case ["python", file, *arguments] if file.startswith("scripts/"):
            run(Path(file).stem, arguments)
        case ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", *started]:
            # By one process here; evaluation/test_shared.py and cli/test_generate_shared.py launch.
            execute(started[1:] if started[0] == "-m" else ["python", *started], run)
        case ["bild", name, "--help"] if name in COMMANDS:
            pass  # cli/test_command.py has it of all
        case ["bild", "--help" | "--version"] | ["bild", "completion", *_]:
            pass
        case ["bild", "web" | "serve" as name, *_]:
            execute(["python", f"scripts/{name}.py"], run)
        case ["bild", "doctor", *arguments]:
            doctor.make_parser().parse_args(arguments)  # the rest is in cli/test_doctor.py
        case ["bild", "download", *_]:
            pass  # cli/test_download.py, with a hub on this machine
        case ["bild", name, *arguments]:
            run(SCRIPTS.get(name, name), arguments)
        case ["bash", launcher, *arguments]:
            text = (ROOT / launcher).read_text()  # test_launchers.py runs them as they stand
            task = re.search(r'python\.sh" run_eval\.py (\w+) "\$@"', text)[1]
            run("run_eval", [task, *arguments])
        case ["python", "-m", "pytest", *_] | ["pre-commit", "run", *_]:
            pass  # this very run; the hooks are downloaded
        case ["mkdocs", "build", *_]:
            pass  # test_site.py
        case ["pip", "install", "-e", what]:
            if what != ".":
                name = re.fullmatch(r"\.\[(\w+)\]", what)[1]
                assert f"\n{name} = [" in (ROOT / "pyproject.toml").read_text()
        case ["pip", "install", "-r", file]:
            assert (ROOT / file).is_file()
        case _:
            pytest.fail(f"nothing here runs {shlex.join(command)}")


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_run_one_after_the_other(page, reader, monkeypatch, capsys):
    def run(name, arguments):
        done = run_here(monkeypatch, capsys, *arguments, *tiny_flags(name, arguments), name=name)
        done.require_success()

    ran = 0
    for kind, block in BLOCK.findall(PAGES[page]):
        if kind == "bash":
            for command in commands_of(block, reader):
                execute(command, run)
                ran += 1
    assert ran


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_are_run_somewhere(page, reader):
    started = []
    for span in CODE_SPAN.findall(BLOCK.sub("", PAGES[page])):
        if re.match(r"(python|make|pip|bild) ", span) and not span.startswith("python -m bild"):
            for command in commands_of(span, reader):
                execute(command, lambda name, _: started.append(name))
    assert set(started) <= set(TINY)


@pytest.mark.parametrize("page", WITH_PYTHON)
@pytest.mark.usefixtures("reader")
def test_the_python_blocks_of_a_page_run_in_their_order(page, capsys):
    names: dict[str, object] = {}
    for kind, block in BLOCK.findall(PAGES[page]):
        if kind == "python":
            exec(compile(block, page, "exec"), names)
    printed = capsys.readouterr().out
    if page == "README.md":
        assert "DecodeStats(generated_tokens=" in printed
        assert re.search(r"(large|small) 0\.\d+ ", printed)
    else:
        assert printed


# ------------------------------------------------------------------------------ what it says


@pytest.fixture(scope="module")
def flags():
    """script -> the flags it takes."""
    found: dict[str, set[str]] = {}

    def parse(parser, *_):
        found[name] = {*parser._option_string_actions}
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", ["script"])
        for path in sorted((ROOT / "scripts").glob("*.py")):
            name = path.stem
            with pytest.raises(SystemExit):
                script(name).main()
    return found | {n: {*module_of(n).make_parser()._option_string_actions} for n in COMMANDS}


OTHERS = {
    "--multi_gpu", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip",
    "--main_process_port",  # of accelerate
    "--nodes", "--ntasks-per-node", "--gpus-per-node", "--time", "--requeue", "--open-mode",
    "--kill-on-bad-exit", "--array", "--cpus-per-task", "--constraint",  # of Slurm
    "--require-hashes",  # of pip
    "--random-source",  # of shuf
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_is_named_exists(page, flags):
    code = re.findall(r"^```.*?^```|`[^`\n]+`", PAGES[page], re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", "\n".join(code))) - OTHERS
    assert named <= set().union(*flags.values())


def test_a_scripts_docstring_names_only_flags_that_scripts_take(flags):
    for name in {path.stem for path in (ROOT / "scripts").glob("*.py")}:
        text = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - OTHERS
        assert named <= set().union(*flags.values()), name


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_say_where_their_data_come_from(page):
    """Shipped, from the hub, or the reader's own: said before the command, or in its section."""
    said = ""
    for section in re.split(r"^## ", PAGES[page], flags=re.MULTILINE):
        said += BLOCK.sub("", section).replace("\n", " ")
        code = "".join(block for kind, block in BLOCK.findall(section) if kind == "bash")
        for folder in {name.partition("/")[0] for name in BROUGHT}:
            if re.search(rf"(?<!/)\b{folder}/", code):
                assert f"yours, in `{folder}/" in said, section.partition("\n")[0]
        launched = [line for line in code.splitlines() if re.search(r"\brun_(?!demo)\w+\.sh", line)]
        if any("--large" not in line for line in launched):
            assert "from the hub" in said, section.partition("\n")[0]


LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(PAGES[page]):
        if link.startswith("https://"):
            continue
        file, _, place = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if place:
            text = target.read_text(encoding="utf-8")
            assert place in map(anchor, re.findall(r"^#+ (.*)$", text, re.MULTILINE)), link


def test_the_readme_is_of_one_sitting_and_leads_to_every_page():
    assert 7_000 <= len(README.encode()) <= 14_000
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in README, page
    for page, text in PAGES.items():
        assert "/OWNER/" not in text, page
