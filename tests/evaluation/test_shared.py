"""One run by several processes: the record of one process, whichever of them were killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace

import pytest
from commands import ROOT, run_command, run_here
from launching import run_processes, together
from toy import PAIRS, save_data, save_pair

from bild import BiLDConfig, BildError
from bild.config import EvalConfig
from bild.evaluation.comparable import comparable
from bild.evaluation.own import OwnArm
from bild.evaluation.record import RunRecord
from bild.evaluation.run import evaluate_loaded, prepare
from bild.tasks.sources import locate

COUNT = 10


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = save_pair(tmp_path_factory.mktemp("shared"))
    save_data(folder / "data.jsonl", PAIRS[:COUNT])
    return folder


@pytest.fixture(scope="module")
def work(pair):
    """What the processes do; they are forks of this one, and find it loaded."""
    config = EvalConfig(
        task="demo", mode="unaligned", bild=BiLDConfig(0.6, 2.0), large=str(pair / "large"),
        small=str(pair / "small"), data_file=str(pair / "data.jsonl"), max_new_tokens=8,
        device="cpu", engine="transformers", warmup=1,
    )  # fmt: skip
    return prepare(config, locate(config))


@pytest.fixture(scope="module")
def alone(work, tmp_path_factory):
    return result(evaluate_loaded(work, tmp_path_factory.mktemp("alone"), progress=False))


def result(done):
    """The record of a run, and its lines."""
    record, path = done
    text = path.with_name("samples.jsonl").read_text(encoding="utf-8")
    return record, [json.loads(line) for line in text.splitlines()]


def evaluating(work, out, count, killed=None):
    """What a process does; one of a rank is killed when it decodes for that many times."""

    def process(rank):
        run, seen = OwnArm.run, []

        def until(arm, case):
            seen.append(arm.kind)
            if len(seen) == 1:  # each has an example then
                together(out.with_name(f"{out.name}-{count}"), rank, count)
            if killed is not None and rank == killed[0] and len(seen) == killed[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(arm, case)

        OwnArm.run = until  # in this fork alone
        try:
            _, path = evaluate_loaded(work, out, progress=False)
        except BildError as error:
            (out / f"said-{rank}").write_text(str(error))
            os._exit(2)
        (out / f"path-{rank}").write_text(str(path.absolute()))

    return process


def only_run(out):
    (folder,) = (out / "demo").iterdir()
    return folder


def require_same(done, alone):
    """Texts and counts are those of one process; no file of the sharing is left."""
    (record, lines), (whole, expected) = done, alone
    assert record.data == whole.data
    for own, theirs in zip(record.arms, whole.arms, strict=True):
        assert (own.id, own.stats, own.quality) == (theirs.id, theirs.stats, theirs.quality)
    for own, theirs in zip(lines, expected, strict=True):
        assert [own[n] for n in ("run", "index", "source", "reference")] == [
            theirs[n] for n in ("run", "index", "source", "reference")
        ]
        for arm, sample in theirs["arms"].items():
            for what in ("text", "tokens", "stats"):
                assert own["arms"][arm][what] == sample[what]


def require_tidy(folder):
    assert {p.name for p in folder.iterdir()} <= {"identity", "lock", "run.json", "samples.jsonl"}


@pytest.mark.parametrize(("count", "changes"), [(2, {}), (3, {"batch_size": 4, "repeat": 2})])
def test_processes_make_the_record_of_one(work, tmp_path, count, changes):
    work = replace(work, config=replace(work.config, **changes))
    whole = result(evaluate_loaded(work, tmp_path / "alone", progress=False))
    out = tmp_path / "out"
    assert run_processes(count, evaluating(work, out, count)) == [0] * count
    path = only_run(out) / "run.json"
    record, lines = done = result((RunRecord.load(path), path))
    require_same(done, whole)
    require_tidy(path.parent)
    assert {p.read_text() for p in out.glob("path-*")} == {str(path.absolute())}
    # Who decoded what, and in how many seconds, is told apart.
    own = [p.process for p in record.processes]
    assert own == sorted({line["process"] for line in lines}) == list(range(1, count + 1))
    assert sum(p.samples for p in record.processes) == len(lines)
    for arm in record.arms:
        total = sum(p.seconds[str(arm.id)] for p in record.processes)
        assert total == pytest.approx(arm.speed.seconds * record.timing.runs)
        assert all(p.warmup_seconds[str(arm.id)] > 0 for p in record.processes)
    assert f"{len(own)} process" in record.timing.interval
    with pytest.raises(BildError, match="processes differ"):
        comparable(record, whole[0])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_loses_nothing(work, alone, tmp_path, victim):
    """The others go on without it. Without the first the record waits for the next call."""
    out = tmp_path / "out"
    codes = run_processes(3, evaluating(work, out, 3, killed=(victim, 5)))
    assert codes[victim] == -signal.SIGKILL
    if victim == 0:
        assert codes[1:] == [2, 2]
        assert "the first process has ended before its record" in (out / "said-1").read_text()
        assert "the same command goes on" in (out / "said-1").read_text()
    else:
        assert codes[0] == codes[2] == 0
    done = result(evaluate_loaded(work, out, progress=False)) if codes[0] else None
    path = only_run(out) / "run.json"
    require_same(done or result((RunRecord.load(path), path)), alone)
    require_tidy(path.parent)


def test_what_one_process_began_others_finish_and_the_other_way_round(work, alone, tmp_path):
    out = tmp_path / "out"
    for count in (1, 2):
        codes = run_processes(count, evaluating(work, out, count, killed=(0, 11 - 3 * count)))
        assert codes[0] == -signal.SIGKILL
    record, lines = result(evaluate_loaded(work, out, progress=False))
    require_same((record, lines), alone)
    require_tidy(only_run(out))
    assert [p.process for p in record.processes] == [0, 2]
    assert record.processes[0].samples == 1


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda line: {**line, "index": COUNT}, "holds example 10 of pass 0, and there are 10"),
        (lambda line: {**line, "source": "another"}, "has another source than example"),
        (lambda line: {**line, "arms": {}}, "lacks the arm"),
    ],
)
def test_lines_of_processes_that_are_not_of_this_run_are_refused(work, tmp_path, edit, sentence):
    run_processes(2, evaluating(work, tmp_path, 2, killed=(0, 5)))
    shards = sorted(only_run(tmp_path).glob("samples-*.jsonl"))
    line, *rest = shards[-1].read_text().splitlines()
    shards[-1].write_text("\n".join([json.dumps(edit(json.loads(line))), *rest, ""]))
    with pytest.raises(BildError, match=sentence) as refused:
        evaluate_loaded(work, tmp_path, progress=False)
    assert f"{shards[-1].name}, line 1" in str(refused.value)


def test_a_process_unlike_the_first_is_refused(work, tmp_path):
    def process(rank):
        own = work if rank == 0 else replace(work, config=replace(work.config, seed=1))
        evaluating(own, tmp_path, 1)(rank)

    assert run_processes(2, process) == [0, 2]
    assert (
        "is not like the first, which has config seed 0, not 1" in (tmp_path / "said-1").read_text()
    )


def test_a_launch_whose_process_is_killed_is_finished_by_one_process(
    pair, tmp_path, monkeypatch, capsys
):
    """By `accelerate launch` itself, which ends the others; nothing that was decoded is lost."""
    (tmp_path / "killed.py").write_text(
        "import os, runpy, signal, time\n"
        "from bild.evaluation.own import OwnArm\n"
        "run, seen = OwnArm.run, []\n"
        "def until(arm, case):\n"
        "    seen.append(arm)\n"
        "    if os.environ['RANK'] == '1' and len(seen) == 8:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if os.environ['RANK'] == '0' and len(seen) == 14:\n"
        "        time.sleep(800)  # until the launcher ends it\n"
        "    return run(arm, case)\n"
        "OwnArm.run = until\n"
        f"runpy.run_path({str(ROOT / 'scripts' / 'run_eval.py')!r}, run_name='__main__')\n"
    )
    command = (
        "demo", "unaligned", 0.6, 2, "--large", pair / "large", "--small", pair / "small",
        "--data-file", pair / "data.jsonl", "--max-new-tokens", 8, "--warmup", 1,
        "--engine", "transformers", "--threads", 1, "--output-dir", tmp_path / "out",
    )  # fmt: skip
    done = run_command(
        (
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", 0, "killed.py", *command,
        ),
        tmp_path,
        {},
        timeout=900,
    )  # fmt: skip
    assert done.code != 0
    folder = only_run(tmp_path / "out")
    kept = {
        (line["run"], line["index"]): line
        for shard in folder.glob("samples-*.jsonl")
        for line in map(json.loads, shard.read_text().splitlines())
    }
    assert kept
    again = run_here(monkeypatch, capsys, *command)
    assert again.path.parent == folder
    assert again.record().env.resumed_after == len(kept)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == COUNT
    for (run, index), line in kept.items():
        assert (run, lines[index]) == (0, line)
    require_tidy(folder)
