"""The search for thresholds: as good as the grid at a fifth of its cost, and nothing done twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from commands import run_here
from mirror import PAIRS
from oracle import Oracle
from toy import COSTS

from bild import BildError
from bild.config import SearchConfig
from bild.evaluation.arms import ArmId
from bild.evaluation.loop import ArmSample, Sample
from bild.evaluation.record import arm_of
from bild.generation.stats import DecodeStats
from bild.tasks.registry import Thresholds
from bild.tuning import search
from bild.tuning.record import SearchRecord, Spent
from bild.tuning.search import Search, grid, propose, sweep

SMALL = SearchConfig(max_loss=2, fallbacks=(0.4, 0.8), rollbacks=(1, 3), budget=0.5)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(search, "RESAMPLES", 200)


def begin(oracle, folder, config):
    return Search(
        oracle.arms, oracle.loop, folder / "decoded", "bleu", config, COSTS, progress=False
    )


def found(oracle, folder, config, first=()):
    """A search by Optuna to its end."""
    work = begin(oracle, folder, config)
    propose(work, folder / "study.db", first)
    return work


# ------------------------------------------------------------------------------ the promise


def test_as_good_as_the_grid_with_a_fifth_of_the_decoding(tmp_path):
    config = SearchConfig(max_loss=2)
    oracle = Oracle(200, seed=1)
    theirs = begin(oracle, tmp_path / "grid", config)
    sweep(theirs)
    assert theirs.spent == 54 * 200
    ours = found(oracle, tmp_path, config, (Thresholds(0.6, 2), Thresholds(0.5, 3)))
    assert ours.spent <= 0.2 * theirs.spent
    assert ours.best.speedup >= 0.995 * theirs.best.speedup
    assert {f.verdict for f in ours.findings.values()} == {"kept", "too lossy", "too slow"}
    # Among the grid's pairs some are faster, and each of them loses too much.
    faster = [f for f in theirs.findings.values() if f.speedup > theirs.best.speedup]
    assert len(faster) > 10
    assert {f.verdict for f in faster} == {"too lossy"}


def test_what_is_kept_is_within_the_allowed_loss(tmp_path):
    work = begin(Oracle(100), tmp_path, SMALL)
    sweep(work)
    for finding in work.findings.values():
        assert finding.loss < finding.loss_bound
        assert (finding.verdict == "kept") == (finding.headroom >= 0)
        assert finding.headroom == pytest.approx(2 - finding.loss_bound)
    front = work.front()
    assert [f.speedup for f in front] == sorted(f.speedup for f in front)
    assert [f.loss for f in front] == sorted(f.loss for f in front)
    for finding in work.findings.values():
        assert any(f.speedup >= finding.speedup and f.loss <= finding.loss for f in front)


def test_nothing_is_chosen_where_every_pair_loses_too_much(tmp_path):
    hopeless = SearchConfig(max_loss=0, fallbacks=(0.1, 0.3), budget=0.5)
    work = found(Oracle(60), tmp_path, hopeless)
    assert work.best is None
    assert {f.verdict for f in work.findings.values()} == {"too lossy"}


def test_loss_may_be_given_in_percent_of_the_large_models_score(tmp_path):
    points = begin(Oracle(60), tmp_path, SMALL)
    percent = begin(Oracle(60), tmp_path, replace(SMALL, percent=True))
    with search._bar(points, "", 0) as bar:
        rooms = [w.examine(Thresholds(0.6, 2.0), bar).headroom for w in (points, percent)]
    alone = points.findings[Thresholds(0.6, 2.0)]
    large = alone.score + alone.loss
    assert rooms[0] - rooms[1] == pytest.approx(2 - 0.02 * large, abs=0.05)


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
    assert resumed.findings == uninterrupted.findings
    assert sorted(decoded, key=str) == sorted(whole.decoded, key=str)

    again = Oracle(64)
    assert found(again, tmp_path / "stopped", SMALL).findings == uninterrupted.findings
    assert again.decoded == []


def test_another_goal_and_the_grid_decode_only_what_is_new(tmp_path):
    oracle = Oracle(48)
    found(oracle, tmp_path, SMALL)
    found(oracle, tmp_path, replace(SMALL, max_loss=4))
    sweep(begin(oracle, tmp_path, SMALL))
    assert max(Counter(oracle.decoded).values()) == 1
    whole = Counter(pair for pair, _ in oracle.decoded)
    assert all(whole[pair] == 48 for pair in grid(SMALL))
    assert whole[None] == 48


# ------------------------------------------------------------------------------ its parts


def test_hopeless_and_slow_pairs_are_given_up_at_the_first_look(tmp_path):
    work = begin(Oracle(300), tmp_path, SearchConfig(max_loss=2))
    with search._bar(work, "", 0) as bar:
        lossy = work.examine(Thresholds(0.1, 6.0), bar)
        kept = work.examine(Thresholds(0.8, 1.0), bar)
        slow = work.examine(Thresholds(0.95, 1.0), bar)
    assert (lossy.verdict, lossy.samples) == ("too lossy", 32)
    assert (kept.verdict, kept.samples) == ("kept", 300)
    assert (slow.verdict, slow.samples) == ("too slow", 32)
    assert work.looks == [32, 48, 72, 108, 162, 243, 300]


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


def test_the_command_searches_checks_and_says_what_to_run(command, tmp_path):
    arguments = ("--max-loss", 100, "--variant", "verified", "--check-file", "test.jsonl")
    done = command(*arguments, "--record", "search.json").require_success()
    record = SearchRecord.load(tmp_path / "search.json")
    chosen = record.points[record.chosen]
    assert f"run_iwslt2017.sh aligned {chosen.fallback:g} {chosen.rollback:g}" in done.out
    assert "--variant verified" in done.out
    assert chosen.speedup == max(p.speedup for p in record.points if p.samples == 8)
    assert record.spent.with_pairs == sum(p.samples for p in record.points) <= 6 * 8
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


def test_measured_grid_times_the_large_model_beside_every_example(command):
    done = command(
        "--method", "grid", "--speed", "measured", "--warmup", 0, "--max-eval-samples", 4
    ).require_success()
    record = SearchRecord.load(done.path)
    assert record.costs is None
    assert len(record.points) == 6
    assert record.spent == Spent(with_pairs=24, large_alone=28, grid_with_pairs=24)
    (path, *_) = (done.path.parent / "decoded").glob("0.*.jsonl")
    arms = [json.loads(line)["arms"] for line in path.open()]
    kinds = [[name.split("-")[0] for name in a] for a in arms]
    assert kinds == [["vanilla", "bild"]] * 4


def test_bad_loss_is_refused_before_anything_is_loaded(command):
    done = command("--max-loss", "little")
    assert done.code == 2
    assert "--max-loss must be points, as 0.5, or a percentage, as 2%, got 'little'" in done.err
