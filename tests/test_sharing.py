"""Units of work among processes: each done once, none lost with a process, nobody kept waiting."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import pytest
from commands import run_here
from launching import TIME, run_processes, together

from bild import BildError, processes, sharing
from bild.processes import Launch, agree, launch
from bild.sharing import Queue

UNITS = 12


def log(folder, rank, unit):
    with (folder / f"log-{rank}").open("a") as stream:
        stream.write(f"{unit}\n")


def logged(folder):
    """The units that each process has done."""
    return {
        int(path.name.removeprefix("log-")): [int(line) for line in path.read_text().split()]
        for path in folder.glob("log-*")
    }


def share(folder, each):
    """What a process does: all units that it gets."""

    def work(rank):
        queue = Queue(folder / "queue", UNITS, first=rank == 0) if rank == 0 else None
        agree("go")
        queue = queue or Queue(folder / "queue", UNITS, first=False)
        for unit in queue.units():
            each(rank, unit)
            log(folder, rank, unit)
        assert queue.done == UNITS
        queue.close()

    return work


@pytest.mark.parametrize("count", [2, 3])
def test_each_unit_is_done_once_and_a_long_one_keeps_nobody_waiting(tmp_path, count):
    def each(rank, unit):
        deadline = time.monotonic() + TIME
        while unit == 0 and sum(map(len, logged(tmp_path).values())) < UNITS - 1:
            assert time.monotonic() < deadline, "the others did not do all the rest"
            time.sleep(0.01)

    assert run_processes(count, share(tmp_path, each)) == [0] * count
    done = logged(tmp_path)
    assert Counter(unit for units in done.values() for unit in units) == Counter(range(UNITS))
    assert [units for units in done.values() if 0 in units] == [[0]]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_what_a_killed_process_held_is_taken_over(tmp_path, victim):
    def each(rank, unit):
        if rank == victim and len(logged(tmp_path).get(rank, ())) == 1:
            (tmp_path / "held").write_text(str(unit))
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + TIME
        while rank != victim and not (tmp_path / "held").exists():
            assert time.monotonic() < deadline, "nobody was killed"
            time.sleep(0.01)

    codes = run_processes(3, share(tmp_path, each))
    assert codes == [-signal.SIGKILL if rank == victim else 0 for rank in range(3)]
    done = Counter(unit for units in logged(tmp_path).values() for unit in units)
    assert done == Counter(range(UNITS))
    assert int((tmp_path / "held").read_text()) in done


def test_one_that_hangs_is_not_waited_for_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "PATIENCE", 0.3)

    def work(rank):
        queue = Queue(tmp_path / "queue", 2, first=True)
        units = queue.units()
        next(units)
        together(tmp_path / "each holds one", rank, 2)
        if rank == 1:
            while not (tmp_path / "said").exists():
                time.sleep(0.02)
            return
        with pytest.raises(BildError) as refused:
            list(units)
        (tmp_path / "said").write_text(str(refused.value))

    assert run_processes(2, work) == [0, 0]
    said = (tmp_path / "said").read_text()
    assert "other processes hold the last 1 of 2 parts of the work" in said
    assert "the same command goes on from here" in said


def test_what_is_written_down_is_done_and_what_is_only_marked_is_not(tmp_path):
    queue = Queue(tmp_path / "queue", 3, first=True)
    assert (queue.claim(), queue.claim(), queue.slot) == (0, 1, 1)
    queue.finish(1)
    queue.close()
    queue = Queue(tmp_path / "queue", 3, first=True)
    queue.begin({2})
    assert list(queue.units()) == [0, 1]
    assert queue.done == 3
    queue.close()


def test_who_comes_when_all_is_done_finds_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Queue(tmp_path / "queue", 3, first=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(sharing.fcntl, "lockf", no_locks)
    with pytest.raises(BildError, match="No locks available"):
        Queue(tmp_path / "queue", 3, first=True)


# ------------------------------------------------------------------------------ the launch


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launch() == Launch()
    assert agree("here") == "here"


@pytest.mark.parametrize(
    "said", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"WORLD_SIZE": "0"}, {"RANK": "-1"}]
)
def test_a_number_that_no_process_can_have_is_refused(monkeypatch, said):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BildError, match=next(iter(said))):
        launch()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("compare_rules", ("demo",)),
        ("benchmark", ()),
    ],
)
def test_work_that_is_not_shared_is_refused_to_several_processes(
    monkeypatch, capsys, tmp_path, name, arguments
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    done = run_here(monkeypatch, capsys, *arguments, name=name)
    assert done.code == 2
    assert "a launcher has started 3 processes, and this is work of one" in done.err
    assert list(tmp_path.iterdir()) == []


def test_processes_hear_where_the_first_one_works(tmp_path):
    def work(rank):
        said = agree(f"folder {rank}"), agree(f"another {rank}")
        (tmp_path / str(rank)).write_text(repr(said))

    assert run_processes(3, work) == [0, 0, 0]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"('folder 0', 'another 0')"}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("missing", [0, 1])
def test_one_that_does_not_come_is_not_waited_for_forever(tmp_path, missing):
    def work(rank):
        if rank != missing:
            try:
                (tmp_path / "said").write_text(agree("x", seconds=0.3))
            except BildError as error:
                (tmp_path / "said").write_text(str(error))

    assert run_processes(2, work) == [0, 0]
    said = (tmp_path / "said").read_text()
    assert said == "x" if missing == 1 else "the first of 2 processes has not said" in said


@pytest.mark.parametrize(
    ("rank", "others", "agent"), [(0, 1, False), (0, 0, False), (0, 0, True), (1, 0, False)]
)
def test_without_a_launchers_server_the_first_is_it_and_stays_until_others_have_heard(
    monkeypatch, rank, others, agent
):
    """As under srun; a store in place of torch's, whose port would have to be free."""
    made, values = [], {"came-0": others, "said-0": b"x"}

    class Store:
        def __init__(self, *place, is_master, **_):
            made.append((*place, is_master))

        def set(self, name, value):
            values[name] = value.encode()

        def get(self, name):
            return values[name]

        def check(self, names):
            return names[0] in values

        def add(self, name, number):
            values[name] += number
            return values[name]

    monkeypatch.setattr("torch.distributed.TCPStore", Store)
    monkeypatch.setattr("torch.distributed.PrefixStore", lambda _, store: store)
    monkeypatch.setattr(processes._Meetings, "held", 0)
    monkeypatch.setattr(processes, "PARTING", 0.2)
    for name, value in {
        "RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "host", "MASTER_PORT": 7,
        "TORCHELASTIC_USE_AGENT_STORE": agent,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    processes._store.cache_clear()
    try:
        assert agree("x") == "x"
        start = time.monotonic()
        if rank == 0:
            processes.part()
        waited = time.monotonic() - start >= 0.2
    finally:
        processes._store.cache_clear()
    assert made == [("host", 7, rank == 0 and not agent)]
    assert waited == (rank == 0 and not others and not agent)


def test_several_processes_without_a_place_to_meet_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    processes._store.cache_clear()
    with pytest.raises(BildError, match="MASTER_PORT"):
        agree("x")
