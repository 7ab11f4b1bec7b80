"""`bild generate` by several processes: the bytes of one process, whichever of them were killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import run_command, run_here
from launching import run_processes, together
from test_generate import Echo, generate_file
from toy import PAIRS, save_pair

from bild import BildError
from bild.outputs.reading import FileJob
from bild.outputs.writing import partial_of

COUNT = 85  # not a multiple of the lines that a process takes at a time
LINES = [f"Zeile {i} für Käthe" if i % 7 else "" for i in range(COUNT)]
WHOLE = "".join(f"<{line}>\n" for line in LINES)


@pytest.fixture
def job(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{line}\n" for line in LINES))
    return FileJob(str(source), str(tmp_path / "out.txt"), quiet=True)


def writing(job, count=1, killed=None, work=None):
    """What a process does; one of a rank is killed when it has decoded so many texts."""

    def process(rank):
        class Killed(Echo):
            def write(self, source):
                if self.left == 10**9:  # each has lines then
                    together(Path(job.output).parent / f"together-{count}", rank, count)
                if killed is not None and rank == killed[0] and self.left == 10**9 - killed[1]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().write(source)

        decoding = Killed() if work is None else Killed(work=work(rank))
        try:
            assert generate_file(decoding, job) == COUNT
        except BildError as error:
            Path(f"{job.output}.said-{rank}").write_text(str(error))
            os._exit(2)

    return process


def beside(job):
    """The names of all files that a job has made."""
    output = Path(job.output)
    return sorted(p.name.removeprefix(output.name) for p in output.parent.glob("*out.*"))


@pytest.mark.parametrize(
    ("count", "changes"),
    [(2, {}), (3, {"output_form": "jsonl", "stats": True}), (2, {"output": "out.txt.gz"})],
)
def test_processes_write_the_bytes_of_one(job, tmp_path, count, changes):
    if "output" in changes:
        changes = {"output": str(tmp_path / changes["output"])}
    job = replace(job, **changes)
    alone = replace(job, output=str(tmp_path / f"alone-{Path(job.output).name}"))
    generate_file(Echo(), alone)
    assert run_processes(count, writing(job, count)) == [0] * count
    assert Path(job.output).read_bytes() == Path(alone.output).read_bytes()
    assert [p.name for p in tmp_path.glob("*partial*")] == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_loses_nothing(job, victim):
    codes = run_processes(3, writing(job, 3, killed=(victim, 5)))
    assert codes[1 - victim] == codes[2] == 0
    assert codes[victim] == -signal.SIGKILL
    if victim == 0:  # the others have finished its share; nothing is decoded again
        assert not Path(job.output).exists()
        assert generate_file(Echo(0), job) == COUNT
    assert Path(job.output).read_text() == WHOLE
    assert beside(job) == [""]


def test_any_number_of_processes_goes_on(job):
    with pytest.raises(RuntimeError):
        generate_file(Echo(20), job)
    assert run_processes(2, writing(job, 2, killed=(1, 3))) == [0, -signal.SIGKILL]
    assert Path(job.output).read_text() == WHOLE
    Path(job.output).unlink()
    assert run_processes(3, writing(job, 3, killed=(0, 3))) == [-signal.SIGKILL, 0, 0]
    generate_file(Echo(0), job)
    assert Path(job.output).read_text() == WHOLE
    assert beside(job) == [""]


def test_whatever_a_kill_leaves_of_a_process_file_is_gone_on_with(job):
    shard, queue = (Path(f"{job.output}.partial-{name}") for name in ("1", "queue"))
    with pytest.raises(RuntimeError):
        generate_file(Echo(0), job)
    first = partial_of(Path(job.output)).read_bytes()
    content = first + b"".join(
        json.dumps([i, f"<{LINES[i]}>"], ensure_ascii=False).encode() + b"\n" for i in (1, 0, 84)
    )
    for length in (0, 3, len(first) - 1, len(first), len(content) - 4, len(content)):
        partial_of(Path(job.output)).write_bytes(first)
        shard.write_bytes(content[:length])
        queue.write_bytes(b"\1" * 9)  # says that all is done; the lines say what is
        assert generate_file(Echo(), job) == COUNT
        assert Path(job.output).read_text() == WHOLE
        assert beside(job) == [""]


@pytest.mark.parametrize(
    "step",
    ["pathlib.Path.unlink", "bild.sharing.Queue.remove", "bild.outputs.writing.Partial.move_to"],
)
def test_killed_as_it_clears_away_it_leaves_nothing_after_the_next_run(job, monkeypatch, step):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(RuntimeError):
        generate_file(Echo(80), job)
    partial = partial_of(Path(job.output))
    first = partial.read_bytes().partition(b"\n")[0]
    lines = (json.dumps([i, f"<{LINES[i]}>"]) for i in range(80, COUNT))
    Path(f"{partial}-1").write_bytes(first + b"\n" + "".join(f"{x}\n" for x in lines).encode())
    with monkeypatch.context() as patch:
        patch.setattr(step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate_file(Echo(0), job)
    assert partial.read_bytes().count(b"\n") == 1 + COUNT
    assert generate_file(Echo(0), job) == COUNT
    assert Path(job.output).read_text() == WHOLE
    assert beside(job) == [""]


def test_other_work_is_refused_and_changes_nothing(job):
    def work(rank):
        return {"rules": {"fallback": 0.5 + rank}}

    codes = run_processes(2, writing(job, work=work))
    assert codes == [0, 2]
    said = Path(f"{job.output}.said-1").read_text()
    assert "its rules fallback is 0.5, not 1.5" in said
    assert Path(job.output).read_text() == WHOLE

    Path(job.output).unlink()
    shard = Path(f"{job.output}.partial-1")
    shard.write_text('{"rules": {"fallback": 0.7}}\n[0, "x"]\n')
    with pytest.raises(BildError, match=r"rules fallback is 0.7, not 0.5"):
        generate_file(Echo(), job)
    assert shard.exists()


@pytest.mark.parametrize("line", ["[85, 1]", "[85, 'x']", '[85, "x"]', '{"0": "x"}', "[0]", "x"])
def test_a_line_that_no_process_wrote_is_named(job, line):
    with pytest.raises(RuntimeError):
        generate_file(Echo(0), job)
    first = partial_of(Path(job.output)).read_text()
    Path(f"{job.output}.partial-1").write_text(f"{first}{line}\n")
    with pytest.raises(BildError, match=r"partial-1, line 2 is not one of this file"):
        generate_file(Echo(), job)


@pytest.mark.parametrize("name", ["source", "output"])
def test_pipes_are_not_shared(job, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    codes = run_processes(2, writing(replace(job, **{name: "-"})))
    assert codes == [2, 2]


def test_a_launch_writes_what_one_process_writes(tmp_path, monkeypatch, capsys):
    pair = save_pair(tmp_path / "pair")
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{source}\n" for source, _ in PAIRS))
    models = ("--large", pair / "large", "--small", pair / "small", "--max-new-tokens", 6,
              "--engine", "transformers")  # fmt: skip
    done = run_command(
        (
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", 0, "-m", "bild",
            "generate", source, "-o", "out.txt", "--threads", 1, *models,
        ),
        tmp_path,
        {},
        timeout=900,
    )  # fmt: skip
    done.require_success()
    alone = run_here(
        monkeypatch, capsys, source, "-o", tmp_path / "alone", *models, name="generate"
    )
    alone.require_success()
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "alone").read_bytes()
    assert not list(tmp_path.glob("out.txt.*"))


def test_a_process_that_comes_when_all_is_done_or_sees_nothing_says_so(job, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("bild.outputs.shared.agree", lambda _: job.output)
    with pytest.raises(BildError, match="process 1 does not see"):
        generate_file(Echo(0), job)
    Path(job.output).write_text(WHOLE)
    assert generate_file(Echo(0), job) == COUNT
    assert beside(job) == [""]
