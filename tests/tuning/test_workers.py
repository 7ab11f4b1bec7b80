"""Several workers of one search: no trial lost, none too many, whichever of them are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

import optuna
import pytest
from commands import run_here
from launching import run_processes, together
from oracle import Oracle
from toy import COSTS, PAIRS, save_data, save_pair

from bild import BiLDConfig, BildError
from bild.config import EvalConfig, SearchConfig
from bild.evaluation.own import OwnArm
from bild.evaluation.run import prepare
from bild.files import read_lines
from bild.tasks.registry import Thresholds
from bild.tasks.sources import locate
from bild.tuning import examine, prices, verdict, workers
from bild.tuning import study as studies
from bild.tuning.examine import Search
from bild.tuning.proposals import Proposals, candidates, space
from bild.tuning.record import SearchRecord
from bild.tuning.search import _bar, search_thresholds
from bild.tuning.study import Study, StudyConfig, study_config
from bild.tuning.workers import search_together, work_on

WIDE = SearchConfig(max_loss=100, fallbacks=(0.5, 0.7), rollbacks=(1, 2), budget=0.5)
NARROW = SearchConfig(max_loss=4, fallbacks=(0.4, 0.8), rollbacks=(1, 3))
COUNT = 3  # examples
TRIALS = 4


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few resamples, no long naps, and proposals that are drawn: this is not about their merit."""
    monkeypatch.setattr(examine, "RESAMPLES", 50)
    monkeypatch.setattr(verdict, "DRAWS", 1000)
    monkeypatch.setattr(workers, "POLL", 0.05)
    monkeypatch.setattr(studies, "LOOK", 0.02)
    monkeypatch.setattr(optuna.samplers, "GPSampler", drawn)
    monkeypatch.setattr(prices, "measure_costs", lambda works, _: [COSTS for _ in works])


def drawn(seed, n_startup_trials):
    return optuna.samplers.RandomSampler(seed)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What the workers do; they are forks of this process, and find it loaded."""
    folder = save_pair(tmp_path_factory.mktemp("workers"))
    optuna.storages.RDBStorage(f"sqlite:///{folder / 'imports.db'}")  # what is imported for it
    save_data(folder / "data.jsonl", PAIRS[:COUNT])
    config = EvalConfig(
        task="demo", mode="unaligned", bild=BiLDConfig(0.6, 2.0), large=str(folder / "large"),
        small=str(folder / "small"), data_file=str(folder / "data.jsonl"), max_new_tokens=4,
        device="cpu", engine="transformers", warmup=0,
    )  # fmt: skip
    return prepare(config, locate(config))


@pytest.fixture
def shared(tmp_path):
    return StudyConfig(f"sqlite:///{tmp_path / 'search.db'}", TRIALS)


def only_study(folder):
    (found,) = folder.glob("out/demo/study-*")
    return found


def trials_of(shared, folder):
    return optuna.load_study(study_name=only_study(folder).name, storage=shared.url).trials


# ------------------------------------------------------------------------------ nothing lost


def test_a_killed_worker_loses_nothing_and_the_trials_are_as_many_as_asked_for(
    work, shared, tmp_path
):
    """Two that a launcher has started; one is killed within its first trial."""

    def process(rank):
        run, seen = OwnArm.run, []

        def until(arm, case):
            seen.append(arm.kind)
            if arm.kind == "bild" and seen.count("bild") == 1:  # each is at a trial then
                together(tmp_path / "here", rank, 2)
            if rank == 1 and seen.count("bild") == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(arm, case)

        OwnArm.run = until  # in this fork alone
        search_together(work, WIDE, shared, tmp_path / "out", check=work.data, progress=False)

    assert run_processes(2, process) == [0, -signal.SIGKILL]
    trials = trials_of(shared, tmp_path)
    assert [t.state.name for t in trials] == ["COMPLETE"] * TRIALS
    record = SearchRecord.load(only_study(tmp_path) / "optuna.json")
    assert record.trials == TRIALS
    points = [(p.fallback, p.rollback) for p in record.points]
    assert points == [(t.params["fallback"], t.params["rollback"]) for t in trials]
    assert len(set(points)) == TRIALS
    assert record.check.data.samples == COUNT
    # What the killed one had decoded was gone on with.
    decoded = list((only_study(tmp_path) / "decoded").iterdir())
    assert len(decoded) == 1 + TRIALS
    assert {len(read_lines(path, str)) for path in decoded} == {COUNT}

    # The same command finds all done; one that asks for more goes on.
    again, _ = search_together(work, WIDE, shared, tmp_path / "out", progress=False)
    assert (again.points, again.chosen) == (record.points, record.chosen)
    asked = replace(shared, trials=TRIALS + 1)
    more, _ = search_together(work, WIDE, asked, tmp_path / "out", progress=False)
    assert [(p.fallback, p.rollback) for p in more.points[:TRIALS]] == points
    assert len(more.points) == more.trials == len(trials_of(shared, tmp_path)) == TRIALS + 1
    # What is tried is worth what a search by one process finds it worth.
    lone, _ = search_thresholds(
        work, replace(WIDE, method="grid"), tmp_path / "lone", progress=False
    )
    worth = {(p.fallback, p.rollback): (p.score, p.speedup) for p in lone.points}
    common = [p for p in record.points if (p.fallback, p.rollback) in worth]
    assert common
    assert all(worth[p.fallback, p.rollback] == (p.score, p.speedup) for p in common)


def oracle_search(oracle, folder, config):
    return Search(
        oracle.arms, oracle.loop, folder / "decoded", "bleu", config, COSTS, progress=False
    )


def worked(oracle, folder, shared, config=NARROW, first=()):
    """One worker, until all is done."""
    folder.mkdir(exist_ok=True)
    search = oracle_search(oracle, folder, config)
    study = Study(shared, config, folder)
    try:
        with study.turn():
            study.open()
        with _bar(search, "", 0) as bar:
            work_on(search, study, bar, first)
        return search.points()
    finally:
        study.close()


@pytest.mark.parametrize("moment", ["begin", "tell"])
def test_killed_at_any_word_with_the_study_a_worker_goes_on_where_it_was(
    shared, tmp_path, monkeypatch, moment
):
    first = (Thresholds(0.6, 2), Thresholds(0.5, 3))
    elsewhere = replace(shared, url=f"sqlite:///{tmp_path / 'other.db'}")
    whole = worked(Oracle(40), tmp_path / "whole", elsewhere, first=first)
    assert [Thresholds(p.fallback, p.rollback) for p in whole[:2]] == list(first)
    assert len(whole) == TRIALS
    asked, stop, original = [], None, getattr(Study, moment)

    def kill(self, *arguments, **named):
        asked.append(1)
        if len(asked) == stop:
            raise KeyboardInterrupt
        result = original(self, *arguments, **named)
        if len(asked) + 0.5 == stop:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Study, moment, kill)
    decoded, resumed = [], None
    for stop in (1, 1.5, 2, None):  # noqa: B007  (before the first call, after it, ...)
        oracle = Oracle(40)
        with suppress(KeyboardInterrupt):
            resumed = worked(oracle, tmp_path / "killed", shared, first=first)
        decoded += oracle.decoded
        asked.clear()
    assert resumed == whole
    assert max(Counter(decoded).values()) == 1


@pytest.mark.parametrize("change", ["set_constraint", "set_user_attr"])
def test_killed_between_two_words_of_what_came_of_a_trial(shared, tmp_path, monkeypatch, change):
    original = getattr(optuna.trial.Trial, change)

    def kill(self, *arguments):
        original(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.trial.Trial, change, kill)
    with pytest.raises(KeyboardInterrupt):
        worked(Oracle(10), tmp_path / "out", shared)
    monkeypatch.setattr(optuna.trial.Trial, change, original)
    assert len(worked(Oracle(10), tmp_path / "out", shared)) == TRIALS


def test_proposals_learn_from_what_all_workers_found_and_are_at(monkeypatch):
    """With Optuna's own sampler."""
    monkeypatch.undo()
    state = optuna.trial.TrialState
    known = [Thresholds(f, 1.0) for f in (0.4, 0.5, 0.6, 0.7)]

    def trial(thresholds, found):
        given = {"params": asdict(thresholds), "distributions": space(NARROW)}
        if found is None:
            return optuna.trial.create_trial(state=state.RUNNING, **given)
        return optuna.trial.create_trial(value=found, constraints={"headroom": -1.0}, **given)

    def proposed(found):
        proposals = Proposals(NARROW)
        proposals.learn([trial(t, speedup) for t, speedup in zip(known, found, strict=True)])
        proposals.learn([trial(Thresholds(0.8, 3.0), None)])
        return proposals.next(set(), None)

    slow, fast = proposed((1.5, 1.4, 1.3, 1.2)), proposed((1.2, 1.3, 1.4, 1.5))
    assert slow.fallback < fast.fallback
    assert {slow, fast} <= set(candidates(NARROW, "optuna"))


def test_all_thresholds_there_are_can_be_tried_and_no_more(shared, tmp_path, monkeypatch):
    told, original = [], Proposals.learn

    def learn(self, trials):
        told.append([t.state.name for t in trials])
        original(self, trials)

    monkeypatch.setattr(Proposals, "learn", learn)
    few = replace(NARROW, fallbacks=(0.5, 0.6), rollbacks=(1, 1.5), budget=1)
    points = worked(Oracle(10), tmp_path / "out", replace(shared, trials=6), few)
    assert len({(p.fallback, p.rollback) for p in points}) == 6
    assert told == [["COMPLETE"] * n for n in range(6)]
    with pytest.raises(BildError, match=r"--trials must be from 1 to 6, the number of .* got 7"):
        study_config(shared.url, 7, few)


def test_one_that_hangs_is_not_waited_for_forever(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.3)

    def process(rank):
        asked = replace(shared, trials=1)
        if rank == 1:
            together(tmp_path / "here", rank, 2)
            with pytest.raises(BildError, match=r"other workers are at the last 1 of 1 trials"):
                worked(Oracle(4), tmp_path / "out", asked)
            (tmp_path / "refused").touch()
            return
        (tmp_path / "out").mkdir()
        study = Study(asked, NARROW, tmp_path / "out")
        with study.turn():
            study.open()
            study.begin(Thresholds(0.5, 1))
        together(tmp_path / "here", rank, 2)
        while not (tmp_path / "refused").exists():
            time.sleep(0.02)

    assert run_processes(2, process) == [0, 0]


# ------------------------------------------------------------------------------ the database


def test_a_database_that_was_not_made_whole_is_made_whole(shared, tmp_path):
    """Killed between a table and its index, it would take two studies of one name."""
    optuna.storages.RDBStorage(shared.url)
    with sqlite3.connect(tmp_path / "search.db") as database:
        database.execute("DROP INDEX ix_studies_study_name")
    worked(Oracle(4), tmp_path / "out", replace(shared, trials=1))
    with sqlite3.connect(tmp_path / "search.db") as database:
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
    assert ("ix_studies_study_name",) in found


def test_a_database_and_a_folder_that_are_not_of_one_study_are_refused(shared, tmp_path):
    worked(Oracle(4), tmp_path / "out", replace(shared, trials=1))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(BildError, match="share what they decode through files; name a folder"):
        worked(Oracle(4), tmp_path / "elsewhere" / "out", shared)
    (tmp_path / "search.db").unlink()
    with pytest.raises(BildError, match=r"does not know the study of .*out: name one that all"):
        worked(Oracle(4), tmp_path / "out", shared)


def test_a_worker_unlike_the_others_is_refused_until_they_are_done(
    work, shared, tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(Study, "begin", stop)
        with pytest.raises(KeyboardInterrupt):
            search_together(work, WIDE, shared, tmp_path / "out", progress=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "odd")
    with pytest.raises(BildError, match=r"was begun with wait_policy .*, not 'odd': one study has"):
        search_together(work, WIDE, shared, tmp_path / "out", progress=False)
    monkeypatch.delenv("OMP_WAIT_POLICY")
    one = replace(shared, trials=1)
    assert search_together(work, WIDE, one, tmp_path / "out", progress=False) is not None
    monkeypatch.setenv("OMP_WAIT_POLICY", "odd")
    assert search_together(work, WIDE, one, tmp_path / "out", progress=False) is not None
    assert len(list(tmp_path.glob("out/demo/study-*"))) == 2


# ------------------------------------------------------------------------------ the command


def test_the_command_is_a_worker(work, shared, tmp_path, monkeypatch, capsys):
    pair = work.config
    monkeypatch.chdir(tmp_path)
    command = partial(
        run_here, monkeypatch, capsys, "demo", "--large", pair.large, "--small", pair.small,
        "--data-file", pair.data_file, "--max-new-tokens", 4, "--warmup", 0, "--max-loss", 100,
        "--fallbacks", 0.5, 0.7, "--rollbacks", 1, 2,
        "--budget", 0.5, name="search_thresholds",
    )  # fmt: skip
    done = command("--storage", shared.url, "--trials", 2).require_success()
    assert SearchRecord.load(done.path).trials == 2
    assert "bash run_demo.sh unaligned" in done.out
    for arguments, sentence in (
        (("--trials", 3), "--trials 3 is of workers that share a --storage; name one"),
        (("--storage", shared.url, "--trials", 0), "--trials must be from 1 to 15"),
        (("--storage", shared.url, "--method", "grid"), "is for --method optuna, not grid"),
        (("--storage", "sqlite://"), "--storage 'sqlite://' lies in memory, where no other"),
        (("--storage", "search.db"), "--storage 'search.db' cannot be used"),
        (("--storage", "sqlite:////no/such/search.db"), "unable to open database file"),
        (
            ("--storage", "odd://me:secret@host/x"),  # pragma: allowlist secret
            "'odd://me:***@host/x' cannot be used",
        ),
    ):
        refused = command(*arguments)
        assert refused.code == 2, arguments
        assert sentence in refused.err
        assert len(refused.complaints) == 1
        assert "secret" not in refused.err
