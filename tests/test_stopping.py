"""Ctrl+C at any moment, once or twice, and SIGTERM: one sentence, soon, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from commands import ROOT, environment

from bild import stopping
from bild.stopping import SECONDS

INT, TERM = signal.SIGINT, signal.SIGTERM
CODES = {INT: 130, TERM: 143}
GOES_ON = "; the same command goes on from here:\n"
IMPORTING = "import time:"
SOON = 4  # seconds: two, and what a busy machine adds


class Process:
    """A process whose stderr is read line by line, less what -X importtime writes there."""

    def __init__(self, folder, *arguments, python=()):
        self.said: list[str] = []
        self.running = subprocess.Popen(
            [sys.executable, *python, *map(str, arguments)],
            cwd=folder,
            env=environment(folder, {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A shell without job control starts what runs behind it deaf to Ctrl+C.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def wait_for(self, text):
        for line in self.running.stderr:
            if not line.startswith(IMPORTING):
                self.said.append(line)
            if text in line:
                return
        raise AssertionError(f"it ended before {text!r}: {self.said}")

    def signal(self, *numbers, between=0.0):
        """(exit code, what it said, seconds until it ended)."""
        start = time.monotonic()
        for number in numbers:
            self.running.send_signal(number)
            time.sleep(between)
        rest = self.running.stderr.readlines()
        code = self.running.wait(timeout=30)
        seconds = time.monotonic() - start
        said = [*self.said, *(line for line in rest if not line.startswith(IMPORTING))]
        return code, "".join(said), seconds


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*arguments, python=()):
        started.append(Process(tmp_path, *arguments, python=python))
        return started[-1]

    yield run
    for process in started:
        process.running.kill()
        process.running.wait()
        process.running.stderr.close()


@pytest.fixture
def program(start, tmp_path):
    """A program of these lines, run as a script is."""

    def run(*lines):
        path = tmp_path / "program.py"
        main = "".join(f"    {line}\n" for line in lines)
        path.write_text(
            "import hashlib, sys, time\nfrom bild.cli import run\n"
            f"def main():\n    print('ready', file=sys.stderr, flush=True)\n{main}"
            "run(main, resumes=True)\n"
        )
        process = start(path)
        process.wait_for("ready")
        process.said.clear()
        return process

    return run


@pytest.mark.parametrize("number", [INT, TERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["bild.errors", "huggingface_hub.errors", "torch._C"])
def test_while_it_starts_a_script_ends_at_once_with_one_sentence(start, module, number):
    process = start(
        ROOT / "scripts" / "run_eval.py", "demo", "--max-eval-samples", 2,
        python=("-X", "importtime"),
    )  # fmt: skip
    process.wait_for(f" {module}\n")
    code, said, seconds = process.signal(number)
    assert code == CODES[number]
    assert said.startswith("\nstopped")
    assert said.count("stopped") == 1
    assert "Traceback" not in said
    assert seconds < SOON


@pytest.mark.parametrize("numbers", [(INT,), (INT, INT), (TERM,), (INT, TERM)])
@pytest.mark.parametrize("between", [0.0, 0.05])
def test_at_work_one_sentence_says_how_to_go_on(program, numbers, between):
    process = program("try:", "    time.sleep(60)", "finally:", "    time.sleep(0.1)")
    code, said, seconds = process.signal(*numbers, between=between)
    assert code in {CODES[number] for number in numbers}
    assert said.startswith(f"\nstopped{GOES_ON}python ")
    assert said.endswith("program.py\n")
    assert said.count("stopped") == 1
    assert seconds < SOON


def test_a_second_signal_in_the_middle_of_the_sentence_does_not_swallow_it(program):
    process = program(
        "import os, signal",
        "from bild import stopping",
        "command = stopping.command",
        "def signalled():",
        "    os.kill(os.getpid(), signal.SIGINT)",
        "    return command()",
        "stopping.command = signalled",
        "time.sleep(60)",
    )  # fmt: skip
    code, said, _ = process.signal(INT)
    assert code == CODES[INT]
    assert said.startswith(f"\nstopped{GOES_ON}python ")
    assert said.count("stopped") == 1


class InUse:
    """A stderr that is being written to: its own methods refuse, its file does not."""

    def __init__(self, file):
        self.fileno = file.fileno

    def flush(self):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

    write = flush


def test_a_signal_in_the_middle_of_a_print_is_told_all_the_same(monkeypatch, tmp_path):
    with (tmp_path / "stderr").open("w") as file:
        monkeypatch.setattr(sys, "stderr", InUse(file))
        monkeypatch.setattr(sys, "argv", ["program.py"])
        with stopping.watched(resumes=True):
            stopping.tell()
    assert (tmp_path / "stderr").read_text() == f"\nstopped{GOES_ON}python program.py\n"


@pytest.mark.parametrize("number", [INT, TERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "deaf",
    [
        ("hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",),
        ("while True:", "    try: time.sleep(60)", "    except BaseException: pass"),
    ],
    ids=["compiled code", "a catch"],
)
def test_what_does_not_hear_a_signal_ends_all_the_same(program, deaf, number):
    process = program(*deaf)
    time.sleep(0.3)  # until it does not hear
    code, said, seconds = process.signal(number)
    assert code == CODES[number]
    assert said.startswith(f"\nstopped{GOES_ON}")
    assert said.count("stopped") == 1
    assert SECONDS <= seconds < SOON


def test_a_second_signal_does_not_wait(program):
    process = program("try:", "    time.sleep(60)", "finally:", "    time.sleep(60)")
    code, said, seconds = process.signal(INT, INT, between=0.1)
    assert (code, said.count("stopped")) == (130, 1)
    assert seconds < SECONDS


def test_a_child_minds_its_own_signals(program):
    """A worker that is ended does not take its parent with it."""
    process = program(
        "import multiprocessing, os",
        "worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))",
        "worker.start(); time.sleep(0.2); worker.terminate(); worker.join()",
        f"time.sleep({SECONDS + 0.3})",
        "print('alive', -worker.exitcode, file=sys.stderr)",
    )
    assert process.running.wait(timeout=30) == 0
    assert process.running.stderr.read() == f"alive {int(TERM)}\n"


def test_a_reader_that_leaves_ends_it_without_a_word(tmp_path):
    program = (
        "from bild.cli import run\n"
        "run(lambda: [print('line', i) for i in range(100000)], resumes=True)\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} program.py | head -1; echo ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=environment(tmp_path, {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("line 0\n141\n", "")


def test_a_run_says_how_much_is_done_and_goes_on(start, tmp_path):
    arguments = (
        ROOT / "scripts" / "run_eval.py", "demo", "unaligned", "--max-eval-samples", 16,
        "--warmup", 0,
    )  # fmt: skip
    process = start(*arguments)
    (folder,) = _wait_for(lambda: list(tmp_path.glob("out/demo/*/samples.jsonl")))
    _wait_for(lambda: folder.read_bytes().count(b"\n") >= 1)
    code, said, seconds = process.signal(INT)
    assert code == 130
    done = folder.read_bytes().count(b"\n")
    sentence = said[said.index("stopped") :]
    assert sentence.startswith(f"stopped ({done} examples are done and kept in out/demo/")
    assert f"{GOES_ON}python {ROOT}/scripts/run_eval.py demo unaligned" in sentence
    assert seconds < SOON
    again = start(*arguments)
    assert again.running.wait(timeout=120) == 0
    assert folder.read_bytes().count(b"\n") == 16
    assert len(list(tmp_path.glob("out/demo/*"))) == 1


def _wait_for(found):
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if found():
            return found()
        time.sleep(0.02)
    raise AssertionError("it did not come")


def test_the_command_that_goes_on_is_one_that_can_be_pasted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bild eval", "demo", "--data-file", "my lines.jsonl"])
    assert stopping.command() == "bild eval demo --data-file 'my lines.jsonl'"
