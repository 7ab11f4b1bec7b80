"""The console command: what it starts, what it refuses, flags from a file, completion."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress

import pytest
from commands import ROOT, run_command, run_here

from bild import cli
from bild._version import __version__
from bild.commands import main as console
from bild.commands.main import COMMANDS, module_of
from bild.evaluation.record import RunRecord
from bild.parser import Parser

BILD = (sys.executable, "-m", "bild")
DOORS = {
    path.stem: found[1]
    for path in sorted((ROOT / "scripts").glob("*.py"))
    if (found := re.search(r"from bild\.commands\.(\w+) import main", path.read_text("utf-8")))
}


@pytest.fixture
def bild(monkeypatch, capsys):
    """`bild` in this process: (exit code, output, errors)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bild", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            console.main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def refused(done):
    code, out, err = done
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


# ------------------------------------------------------------------------------ what it starts


def test_pip_installs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"bild": "bild.commands.main:main"}


@pytest.mark.parametrize("door", DOORS)
def test_a_script_is_the_same_code_as_its_command(door):
    command = COMMANDS[DOORS[door]]
    text = (ROOT / "scripts" / f"{door}.py").read_text(encoding="utf-8")
    assert ("run(main, resumes=True)" in text) == command.resumes
    assert len(text.splitlines()) <= 8


def test_every_script_that_users_start_has_a_command():
    of_the_checkout = {
        "check_duplicates", "compare_rules", "demo", "make_adversary", "make_api", "make_demo_data",
        "make_lock", "make_results", "make_tables",
    }  # fmt: skip
    assert {p.stem for p in (ROOT / "scripts").glob("*.py")} - {*DOORS} == of_the_checkout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_and_the_common_flags(name, bild):
    code, out, err = bild(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: bild {name} ")
    assert re.search(rf"^    bild {name}\b", out, re.MULTILINE)
    assert "--config FILE" in out


def test_help_and_version_come_at_once_and_without_torch(tmp_path):
    done = run_command([*BILD, "--help"], tmp_path, {})
    assert (done.code, done.err) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in done.out
    assert run_command([*BILD, "--version"], tmp_path, {}).out == f"bild {__version__}\n"
    code = (
        "import sys; from bild.commands.main import COMMANDS, module_of\n"
        "for name in COMMANDS: module_of(name).make_parser()\n"
        "print(*{'torch', 'transformers', 'datasets', 'yaml', 'gradio'} & set(sys.modules))"
    )
    assert run_command([sys.executable, "-c", code], tmp_path, {}).out == "\n"


def test_a_command_decodes_as_its_script_does(bild, monkeypatch, capsys, tmp_path):
    flags = ("demo", "--max-eval-samples", 2, "--max-new-tokens", 8, "--warmup", 0)
    monkeypatch.chdir(tmp_path)
    code, out, err = bild("eval", *flags)
    assert code == 0, err
    own = RunRecord.load(tmp_path / out.splitlines()[-1])
    other = run_here(monkeypatch, capsys, *flags).require_success().record()
    assert [arm.stats for arm in own.arms] == [arm.stats for arm in other.arms]
    assert own.arm("bild").stats.generated_tokens > 2


def test_quiet_and_json_say_nothing_else(bild, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = ("demo", "vanilla", "--max-eval-samples", 1, "--max-new-tokens", 4, "--warmup", 0)
    code, out, err = bild("eval", *flags, "--quiet")
    assert (code, err) == (0, "")
    record = RunRecord.load(tmp_path / out.rstrip("\n"))
    code, out, err = bild("eval", *flags, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["data"] == record.content()["data"]


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (("evl",), ("'evl'", "did you mean eval?")),
        (("sing",), ("'sing'", "choose one of", "trace")),
        (("--loud",), ("'--loud'",)),
        (("eval",), ("task",)),
        (("eval", "demo", "--engine", "quick"), ("--engine", "'quick'")),
        (("eval", "demo", "--max-eval", "3"), ("--max-eval",)),  # no abbreviations
        (("completion", "fish"), ("'fish'", "bash, zsh")),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_sentence(bild, arguments, needles):
    err = refused(bild(*arguments))
    for needle in needles:
        assert needle in err


# ------------------------------------------------------------------------------ --config


@pytest.fixture
def parser():
    parser = Parser("Cooks.")
    add = parser.add_argument
    add("dish")
    add("side", nargs="?", default="rice", choices=("rice", "bread"))
    add("--spoons", type=int, default=2)
    add("--hot", action="store_true")
    add("--max-guests", nargs="+", type=int, required=True)
    add("--salt", nargs=2, type=float, default=(1.0, 2.0))
    return parser


def config_file(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_gives_flags_and_the_command_line_wins(parser, tmp_path):
    path = config_file(
        tmp_path, "dish: no\nspoons: 3\nhot: yes\nmax-guests: [4, 5]\nsalt: [0.5, 1e-1]\n"
    )
    a = parser.parse_args(["--config", str(path)])
    assert (a.dish, a.side, a.spoons, a.hot) == ("no", "rice", 3, True)
    assert (a.max_guests, a.salt) == ([4, 5], [0.5, 0.1])
    assert parser.changed("spoons", 3)
    assert not parser.changed("spoons", 2)
    again = parser.parse_args([f"--config={path}", "soup", "bread", "--spoons", "9"])
    assert (again.dish, again.side, again.spoons, again.max_guests) == ("soup", "bread", 9, [4, 5])


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("spoon: 3", ("'spoon'", "did you mean spoons?")),
        ("moon: 3", ("'moon'", "no flag of")),
        ("config: x", ("'config'",)),
        ("help: true", ("'help'",)),
        ("spoons: many", ("--spoons", "invalid int value: 'many'")),
        ("spoons: [1, 2]", ("--spoons", "plain value")),
        ("spoons: {a: 1}", ("--spoons", "plain value")),
        ("spoons:", ("--spoons", "''")),
        ("hot: maybe", ("--hot", "true or false", "'maybe'")),
        ("side: soup", ("side", "must be one of rice, bread, got 'soup'")),
        ("salt: [1]", ("--salt", "list of 2 values, got 1")),
        ("spoons: 1\nspoons: 2", ("'spoons' twice",)),
        ("spoons: [1", ("line 1 is not YAML",)),
        ("- spoons", ("must hold settings",)),
        ("", ("must hold settings",)),
        (b"dish: \xff", ("not UTF-8",)),
        ("dish: &a [*a]", ("--config",)),
        ("[" * 5000, ("--config",)),
        ("# " + "x" * 1_000_001, ("longer than 1,000,000 bytes",)),
    ],
)  # fmt: skip
def test_a_file_that_says_something_else_is_refused_in_a_sentence(
    parser, tmp_path, capsys, text, needles
):
    path = config_file(tmp_path, text)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--config", str(path), "soup", "--max-guests", "1"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --config ")
    assert said.count("\n") == 1
    for needle in (str(path), *needles):
        assert needle in said


@pytest.mark.parametrize("place", ["nowhere.yaml", "."])
def test_a_file_that_is_not_there(parser, tmp_path, capsys, place):
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", str(tmp_path / place), "soup"])
    assert "is not a file; give one in YAML" in capsys.readouterr().err


def test_a_run_by_a_file_is_the_run_by_its_flags(bild, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = config_file(
        tmp_path,
        "task: demo\nmode: vanilla\nmax_eval_samples: 1\nmax-new-tokens: 4\nwarmup: 0\nquiet: true",
    )
    code, out, err = bild("eval", "--config", path)
    assert (code, err) == (0, "")
    config = RunRecord.load(tmp_path / out.rstrip("\n")).config
    assert (config.mode, config.max_samples, config.max_new_tokens) == ("vanilla", 1, 4)


# ------------------------------------------------------------------------------ completion


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_flags_and_values(bild, tmp_path):
    code, script, err = bild("completion", "bash")
    assert (code, err) == (0, "")
    (tmp_path / "bild.bash").write_text(script)

    def offered(*words):
        quoted = " ".join(f"'{word}'" for word in words)
        code = (
            f"source bild.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_bild; "
            'echo "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert {*offered("bild", "")} >= {*COMMANDS}
    assert offered("bild", "ev") == ["eval"]
    assert offered("bild", "eval", "demo", "--preci") == ["--precision"]
    assert "cnndm" in offered("bild", "eval", "c")


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script(bild, shell):
    code, script, err = bild("completion", shell)
    assert (code, err) == (0, "")
    for name in COMMANDS:
        assert name in script


def test_modules_of_commands_have_what_is_asked_of_them():
    for name in COMMANDS:
        module = module_of(name)
        assert callable(module.main)
        assert isinstance(module.make_parser(), Parser)
        assert module.__doc__
    assert callable(cli.run)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("arguments", [(), ("--help",), ("nosuchcommand-ł→",), ("eval", "--help")])
def test_a_terminal_of_another_alphabet_ends_no_command(monkeypatch, encoding, arguments):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    monkeypatch.setattr("sys.argv", ["bild", *arguments])
    with suppress(SystemExit):
        console.main()
    print("→ Ł")  # whatever a command prints
    shown = []
    for stream in streams:
        stream.flush()
        shown.append(stream.buffer.getvalue().decode(encoding))
    assert shown[0].endswith("? ?\n")
    if arguments[:1] == ("nosuchcommand-ł→",):
        assert "there is no command 'nosuchcommand-??'" in shown[1]


def test_a_torchvision_of_another_torch_is_one_sentence(monkeypatch, capsys):
    def main():
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as behind:
            raise ModuleNotFoundError("Could not import module 'PreTrainedModel'") from behind

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the installed torchvision belongs to another torch")
    assert "pip uninstall torchvision torchaudio" in said
    with pytest.raises(ModuleNotFoundError):  # any other is no fault of the machine
        cli.run(lambda: exec("raise ModuleNotFoundError('x')"))


@pytest.mark.parametrize(
    ("library", "variable"),
    [("huggingface_hub", "HF_ENDPOINT"), ("torch", "TORCH_LOGS"), ("matplotlib", "MPLBACKEND")],
)
def test_what_a_library_cannot_read_from_the_environment_is_one_sentence(
    monkeypatch, capsys, library, variable
):
    """As "http://127.0.0.1:port", of which huggingface_hub says no more than that it is no port."""

    def main():
        try:
            exec("raise ValueError('no port')", {"__name__": f"{library}.within"})
        except ValueError as behind:
            raise RuntimeError("Could not import module 'PreTrainedModel'") from behind

    for name in [name for name in os.environ if name.startswith(("HF_", "TORCH", "MPL"))]:
        monkeypatch.delenv(name)
    with pytest.raises(RuntimeError):  # a fault of another kind keeps its stack trace
        cli.run(main)
    monkeypatch.setenv(variable, "http://me:password@host:port")  # pragma: allowlist secret
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {library} cannot be imported (ValueError: no port)")
    assert said.endswith(f"from the environment: {variable}\n")
