"""The search for thresholds: as good as the grid at a fifth of its cost, and nothing done twice."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from functools import partial

import optuna
import pytest
from commands import run_here
from launching import run_processes, together
from mirror import PAIRS
from oracle import Oracle
from toy import COSTS

from bild import BildError
from bild.config import SearchConfig
from bild.evaluation.arms import ArmId
from bild.evaluation.loop import ArmSample, Sample
from bild.evaluation.own import OwnArm
from bild.evaluation.record import arm_of
from bild.generation.stats import DecodeStats
from bild.tasks.registry import Thresholds
from bild.tuning import examine, prices
from bild.tuning.examine import Search, front
from bild.tuning.proposals import Proposals, candidates
from bild.tuning.record import SearchRecord, Spent
from bild.tuning.search import _bar, propose, sweep

SMALL = SearchConfig(max_loss=2, fallbacks=(0.4, 0.8), rollbacks=(1, 3), budget=0.5)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(examine, "RESAMPLES", 200)


def begin(oracle, folder, config):
    return Search(
        oracle.arms, oracle.loop, folder / "decoded", "bleu", config, COSTS, progress=False
    )


def found(oracle, folder, config, first=()):
    """A search by Optuna to its end."""
    work = begin(oracle, folder, config)
    propose(work, first)
    return work


def swept(oracle, folder, config):
    """All of the grid."""
    work = begin(oracle, folder, replace(config, method="grid"))
    sweep(work)
    return work


def outcome(work):
    """What a search found, and how."""
    return work.points(), work.best, work.margin


# ------------------------------------------------------------------------------ the promise


def test_as_good_as_the_grid_with_a_fifth_of_the_decoding(tmp_path):
    config = SearchConfig(max_loss=2)
    oracle = Oracle(200, seed=1)
    theirs = swept(oracle, tmp_path / "grid", config)
    assert theirs.spent == 54 * 200
    ours = found(oracle, tmp_path, config, (Thresholds(0.6, 2), Thresholds(0.5, 3)))
    assert ours.spent <= 0.2 * theirs.spent
    assert ours.speedup(ours.best) >= 0.995 * theirs.speedup(theirs.best)
    assert {p.verdict for p in ours.points()} == {"kept", "too lossy", "too slow"}
    # Among the grid's points some are faster, and each of them loses too much.
    faster = [p for p in theirs.points() if p.speedup > theirs.speedup(theirs.best)]
    assert len(faster) > 10
    assert {p.verdict for p in faster} == {"too lossy"}


def test_what_is_kept_is_within_the_allowed_loss(tmp_path):
    work = swept(Oracle(100), tmp_path, SMALL)
    points = work.points()
    for point in points:
        assert point.loss < point.loss_bound
        assert (point.verdict == "kept") == (point.headroom >= 0)
        assert point.headroom == pytest.approx(2 - point.loss_bound)
    shown = [points[i] for i in front(points, 100)]
    assert [p.speedup for p in shown] == sorted(p.speedup for p in shown)
    assert [p.loss for p in shown] == sorted(p.loss for p in shown)
    for point in points:
        assert any(p.speedup >= point.speedup and p.loss <= point.loss for p in shown)


def test_nothing_is_chosen_where_every_pair_loses_too_much(tmp_path):
    hopeless = SearchConfig(max_loss=0, fallbacks=(0.1, 0.3), budget=0.5)
    work = found(Oracle(60), tmp_path, hopeless)
    assert work.best is None
    assert {p.verdict for p in work.points()} == {"too lossy"}


def test_loss_may_be_given_in_percent_of_the_large_models_score(tmp_path):
    points = begin(Oracle(60), tmp_path, SMALL)
    percent = begin(Oracle(60), tmp_path, replace(SMALL, percent=True))
    for work in (points, percent):
        with _bar(work, "", 0) as bar:
            work.examine(Thresholds(0.6, 2.0), bar)
    look = points.tried[Thresholds(0.6, 2.0)]
    rooms = [w.tried[Thresholds(0.6, 2.0)].headroom for w in (points, percent)]
    large = look.score + look.loss.value
    assert rooms[0].value - rooms[1].value == pytest.approx(2 - 0.02 * large)
    assert rooms[0].error == pytest.approx(look.loss.error)
    assert rooms[1].error != pytest.approx(look.loss.error)


# ------------------------------------------------------------------------------ nothing twice


def test_a_search_that_is_stopped_goes_on_and_decodes_nothing_twice(tmp_path):
    whole = Oracle(64)
    uninterrupted = found(whole, tmp_path / "whole", SMALL)
    decoded = []
    for stop in (40, 110, None):  # within the large model alone, then within pairs
        oracle = Oracle(64, stop_after=stop)
        try:
            resumed = found(oracle, tmp_path / "stopped", SMALL)
        except KeyboardInterrupt:
            assert stop is not None
        decoded += oracle.decoded
    assert max(Counter(decoded).values()) == 1
    assert outcome(resumed) == outcome(uninterrupted)
    assert sorted(decoded, key=str) == sorted(whole.decoded, key=str)

    again = Oracle(64)
    assert outcome(found(again, tmp_path / "stopped", SMALL)) == outcome(uninterrupted)
    assert again.decoded == []


@pytest.mark.parametrize("moment", ["next", "tell"])
def test_killed_at_any_proposal_it_tries_and_chooses_the_same(tmp_path, monkeypatch, moment):
    """Thresholds known for a task are not lost, and none is tried out of its turn."""

    def quick(seed, n_startup_trials):
        return optuna.samplers.RandomSampler(seed)

    monkeypatch.setattr(optuna.samplers, "GPSampler", quick)
    monkeypatch.setattr(examine, "RESAMPLES", 50)
    first = (Thresholds(0.6, 2), Thresholds(0.5, 3))
    uninterrupted = found(Oracle(48), tmp_path / "whole", SMALL, first)
    assert list(uninterrupted.tried)[:2] == list(first)
    asked = []
    original = getattr(Proposals, moment)

    def kill(self, *arguments):
        asked.append(1)
        if len(asked) == stop:
            raise KeyboardInterrupt
        result = original(self, *arguments)
        if len(asked) + 0.5 == stop:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Proposals, moment, kill)
    stop, decoded, resumed = 1.0, [], None
    while resumed is None:
        oracle = Oracle(48)
        try:
            resumed = found(oracle, tmp_path / "killed", SMALL, first)
        except KeyboardInterrupt:
            stop += 0.5  # before the call, then after it
        decoded += oracle.decoded
        asked.clear()
    assert stop > len(uninterrupted.tried)
    assert outcome(resumed) == outcome(uninterrupted)
    assert max(Counter(decoded).values()) == 1


def test_another_goal_and_the_grid_decode_only_what_is_new(tmp_path):
    oracle = Oracle(48)
    found(oracle, tmp_path, SMALL)
    found(oracle, tmp_path, replace(SMALL, max_loss=4))
    swept(oracle, tmp_path, SMALL)
    assert max(Counter(oracle.decoded).values()) == 1
    whole = Counter(thresholds for thresholds, _ in oracle.decoded)
    assert all(whole[thresholds] == 48 for thresholds in candidates(SMALL, "grid"))
    assert whole[None] == 48


# ------------------------------------------------------------------------------ its parts


def test_hopeless_and_slow_pairs_are_given_up_at_the_first_look(tmp_path):
    work = begin(Oracle(300), tmp_path, SearchConfig(max_loss=2))
    with _bar(work, "", 0) as bar:
        for thresholds in ((0.1, 6.0), (0.8, 1.0), (0.95, 1.0)):
            work.examine(Thresholds(*thresholds), bar)
    lossy, kept, slow = work.points()
    assert (lossy.verdict, lossy.samples) == ("too lossy", 32)
    assert (kept.verdict, kept.samples) == ("kept", 300)
    assert (slow.verdict, slow.samples) == ("too slow", 32)
    assert work.plan.looks == (32, 48, 72, 108, 162, 243, 300)


def test_what_was_given_up_for_a_rival_that_is_not_kept_is_taken_up_again(tmp_path):
    work = begin(Oracle(300), tmp_path, SearchConfig(max_loss=2))
    kept, slow = Thresholds(0.8, 1.0), Thresholds(0.95, 1.0)
    with _bar(work, "", 0) as bar:
        work.examine(kept, bar)
        work.examine(slow, bar)
        assert (work.verdict(slow), work.reopened()) == ("too slow", None)
        work._margin_of = 1, 50.0  # as if it had turned out that so much is needed
        assert (work.best, work.verdict(kept)) == (None, "too lossy")
        assert work.reopened() == slow
        work.examine(slow, bar)
    assert work.tried[slow].samples > 32


def test_price_counts_forwards_tokens_and_encoders():
    def sample(arm, **counts):
        done = ArmSample("", [], 9.0, 9.0, DecodeStats(**counts))
        return Sample(0, 0, "", "", 1, False, {ArmId(arm): done})

    alone = sample("vanilla", large_forwards=10, large_tokens_fed=10)
    pair = sample("bild", large_forwards=4, large_tokens_fed=12, small_forwards=9)
    assert COSTS(alone, pair) == pytest.approx(
        (0.025 + 10 * 0.018, 0.025 + 0.009 + 4 * 0.018 + 8 * 0.0032 + 9 * 0.0043)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_loss": -1}, "max_loss must be a number >= 0, got -1"),
        ({"confidence": 1.0}, "confidence must be at least 0.5 and below 1, got 1.0"),
        ({"confidence": 0.9999}, "confidence must be at most 0.999, since so rare errors cannot"),
        ({"rollbacks": (3, 2)}, "rollbacks must be a lowest and a highest threshold"),
        ({"method": "luck"}, "method must be one of optuna, grid, got 'luck'"),
        ({"speed": "fast"}, "speed must be one of forwards, measured, got 'fast'"),
        ({"budget": 0.01}, "worth one of its 54 pairs, 0.019 or more, got 0.01"),
    ],
)
def test_impossible_searches_are_refused(change, message):
    with pytest.raises(BildError) as error:
        SearchConfig(**change)
    assert message in str(error.value)


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def command(mirror, monkeypatch, capsys, tmp_path):
    """The script in this process, on tiny models, with eight sentences and four to check on."""
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for name, some in (("validation", PAIRS), ("test", PAIRS[:4])):
        lines = (json.dumps({"de": s, "en": t}, ensure_ascii=False) + "\n" for s, t in some)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return partial(
        run_here, monkeypatch, capsys, "iwslt2017", "aligned", "--max-new-tokens", 6,
        "--data-file", "validation.jsonl", "--fallbacks", 0.5, 0.7, "--rollbacks", 1, 2,
        "--budget", 1, name="search_thresholds",
    )  # fmt: skip


def test_a_rule_takes_the_place_of_a_threshold(command):
    """Nothing is decoded twice for thresholds that the rule does not read."""
    done = command("--max-loss", 100, "--rule", "regret:budget=3").require_success()
    record = SearchRecord.load(done.path)
    assert len({(p.fallback, p.rollback) for p in record.points}) == len(record.points) <= 5
    assert len({p.rollback for p in record.points}) == 1
    assert "--rule regret:budget=3" in done.out


def test_the_command_searches_checks_and_says_what_to_run(command, tmp_path):
    arguments = ("--max-loss", 100, "--variant", "verified", "--check-file", "test.jsonl")
    done = command(*arguments, "--record", "search.json").require_success()
    record = SearchRecord.load(tmp_path / "search.json")
    chosen = record.points[record.chosen]
    assert f"run_iwslt2017.sh aligned {chosen.fallback:g} {chosen.rollback:g}" in done.out
    assert "--variant verified" in done.out
    assert chosen.speedup == max(p.speedup for p in record.points if p.samples == 8)
    assert record.spent.by_pair == sum(p.samples for p in record.points) <= 6 * 8
    assert record.spent.large_alone == 8
    assert record.data.samples == 8
    assert record.check.data.samples == 4
    assert arm_of(record.check.arms, "bild").speed.speedup.value > 0
    assert min(record.costs[n] for n in record.costs if n != "large_token") > 0

    decoded = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    command(*arguments).require_success()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")} == decoded
    assert SearchRecord.load(done.path).points == record.points

    # What the search decoded with the chosen pair is what the launcher's script decodes with it.
    (folder,) = (tmp_path / "out" / "iwslt2017").glob("search-*")
    name = f"{chosen.fallback:g}-{chosen.rollback:g}.jsonl"
    (checked,) = folder.glob("check/*/*/samples.jsonl")
    texts = [
        {
            s["source"]: next(a["tokens"] for n, a in s["arms"].items() if n.startswith("bild"))
            for s in map(json.loads, path.open())
        }
        for path in (folder / "decoded" / name, checked)
    ]
    assert len(texts[1]) == 4
    assert texts[1].items() <= texts[0].items()


def test_damaged_prices_are_refused_in_a_sentence(command):
    few = ("--method", "grid", "--max-eval-samples", 2, "--warmup", 0)
    done = command(*few).require_success()
    assert done.err == ""  # no bars where nobody watches
    path = done.path.with_name("prices.json")
    whole = path.read_bytes()
    damaged = (b"", whole[:40], b"[]", b"{}", b'{"small": 3}', b'{"small": {}}', b"\xff")
    wrong_type = whole.replace(b'"large_token": ', b'"large_token": "much", "x": ')
    for content in (*damaged, wrong_type):
        path.write_bytes(content)
        again = command(*few)
        assert again.code == 2, content
        assert len(again.complaints) == 1, again.err
        assert "prices.json" in again.err
        assert "remove it" in again.err
    path.unlink()
    assert command(*few).require_success().path == done.path


def test_measured_grid_times_the_large_model_beside_every_example(command):
    done = command(
        "--method", "grid", "--speed", "measured", "--warmup", 0, "--max-eval-samples", 4
    ).require_success()
    record = SearchRecord.load(done.path)
    assert record.costs is None
    assert len(record.points) == 6
    assert record.spent == Spent(by_pair=24, large_alone=28, grid_by_pair=24)
    (path, *_) = (done.path.parent / "decoded").glob("0.*.jsonl")
    arms = [json.loads(line)["arms"] for line in path.open()]
    kinds = [[name.split("-")[0] for name in a] for a in arms]
    assert kinds == [["vanilla", "bild"]] * 4


def test_processes_share_the_grid_and_choose_what_one_would(command, tmp_path, monkeypatch):
    """One of three is killed at its first thresholds, which another one takes over."""
    monkeypatch.setattr(
        "bild.tuning.prices.measure_costs", lambda works, _: [COSTS for _ in works]
    )  # by the clock, which differs from run to run
    few = ("--method", "grid", "--max-loss", 100, "--max-eval-samples", 4)
    alone = SearchRecord.load(command(*few, "--output-dir", "alone").require_success().path)

    def process(rank):
        run, seen = OwnArm.run, []

        def killed(arm, case):
            seen.append(arm)
            if len(seen) == 1:
                together(tmp_path / "here", rank, 3)
            if rank == 1 and len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(arm, case)

        OwnArm.run = killed  # in this fork alone
        command(*few, "--output-dir", "shared").require_success()

    assert run_processes(3, process) == [0, -signal.SIGKILL, 0]
    (path,) = (tmp_path / "shared" / "iwslt2017").glob("search-*/grid.json")
    record = SearchRecord.load(path)
    assert (record.points, record.chosen, record.front) == (
        alone.points, alone.chosen, alone.front,
    )  # fmt: skip
    assert (record.spent, record.large) == (alone.spent, alone.large)
    assert not (path.parent / "shared").exists()
    decoded = {p.name for p in (path.parent / "decoded").iterdir()}
    assert decoded == {p.name for p in tmp_path.glob("alone/*/*/decoded/*")}


def test_processes_share_optunas_proposals_through_a_database_alone(command, tmp_path, monkeypatch):
    """One that a launcher has started is told so; with one: tests/tuning/test_workers.py."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = command("--output-dir", "shared")
    assert done.code == 2
    assert "through a database: name one with --storage, as sqlite:///search.db" in done.err
    assert not list(tmp_path.glob("shared/*/search-*"))


def test_an_output_folder_may_have_any_name(command, tmp_path):
    odd = tmp_path / "100% ?mode=memory#;äß"
    few = ("--method", "grid", "--max-eval-samples", 2, "--warmup", 0)
    before = {p.name for p in tmp_path.iterdir()}
    for method in ("grid", "optuna"):
        done = command("--output-dir", odd, *few, "--method", method).require_success()
        assert done.path.is_relative_to(odd)
    assert {p.name for p in tmp_path.iterdir()} == before | {odd.name}


def test_prices_and_timed_examples_belong_to_the_place_that_measured_them(command, monkeypatch):
    measured = []
    original = prices.measure_costs

    def measure(*arguments):
        measured.append(1)
        return original(*arguments)

    monkeypatch.setattr(prices, "measure_costs", measure)
    few = ("--method", "grid", "--max-eval-samples", 2, "--warmup", 0)

    def run(policy, *more):  # as good a difference as threads or a commit, and as fast
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
        return command(*few, *more).require_success()

    runs = [run(policy) for policy in ("active", "passive", "active")]
    folders = [done.path.parent for done in runs]
    assert len(measured) == 2
    assert folders[0] == folders[2] != folders[1]
    assert "was begun with wait_policy 'active', not 'passive': it stays as it is" in runs[1].err
    assert "was begun" not in runs[0].err + runs[2].err
    assert SearchRecord.load(runs[1].path).env.wait_policy == "passive"
    # The same of examples that the clock was taken of.
    timed = [run(policy, "--speed", "measured") for policy in ("active", "passive")]
    assert "was begun with wait_policy 'active', not 'passive'" in timed[1].err
    assert timed[0].path.parent != timed[1].path.parent
    for done in timed:
        assert len(list((done.path.parent / "decoded").iterdir())) == 1 + 6


def test_the_command_to_paste_holds_what_was_asked_for(command):
    few = ("--method", "grid", "--max-eval-samples", 2, "--max-loss", 100)
    (pasted,) = lines_with("bash run_", command(*few))
    assert pasted.endswith(" --max-new-tokens 6")
    assert pasted.count("--") == 1
    (pasted,) = lines_with(
        "bash run_", command(*few, "--no-compile", "--variant", "paper", "--num-small-iters", 4)
    )
    assert "--variant paper --num-small-iters 4.0 " in pasted
    assert pasted.endswith(" --max-new-tokens 6 --no-compile")


def lines_with(start, done):
    return [line for line in done.require_success().out.split("\n") if line.startswith(start)]


def test_bad_loss_is_refused_before_anything_is_loaded(command):
    done = command("--max-loss", "little")
    assert done.code == 2
    assert "--max-loss must be points, as 0.5, or a percentage, as 2%, got 'little'" in done.err
