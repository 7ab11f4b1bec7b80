"""The promise of a search, by simulation: what it chooses seldom loses more than is allowed.

Drawn examples stand for decoded ones: each has a headroom with each of many thresholds, correlated
as those of real examples are. Most thresholds lose exactly as much as is allowed and a hair more,
which is where a search errs most easily; whoever keeps one of these has been lucky.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from bild.tuning import verdict
from bild.tuning.verdict import Estimate, Plan, expected_bound, judge, margin

SEARCHES, EXAMPLES, RESAMPLES = 400, 200, 200
CONFIDENCE = 0.95
ONE_BY_ONE = NormalDist().inv_cdf(CONFIDENCE)  # the margin that looks at each by itself
PLACES = np.array([(f, r) for f in range(8) for r in range(5)], dtype=float)
COUNT = len(PLACES)
SPEEDUPS = 1 + PLACES @ (0.1, 0.05)
PLAN = Plan(EXAMPLES, COUNT, CONFIDENCE)
# How often each example is resampled: drawn once, as a search does it, for every number of them.
WEIGHTS = {
    n: np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in PLAN.looks
}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(verdict, "DRAWS", 5000)


def correlations(common, reach):
    """Of the examples' headrooms: `common` between all, and more between neighbours."""
    distance = np.linalg.norm(PLACES[:, None] - PLACES, axis=-1)
    near = np.exp(-distance / reach) if reach else np.eye(COUNT)
    return common + (1 - common) * near


class World:
    """Draws the headrooms of a search's examples, (examples, thresholds)."""

    def __init__(self, common, reach, headroom, seed):
        self.correlations = correlations(common, reach)
        self.root = np.linalg.cholesky(self.correlations + 1e-9 * np.eye(COUNT))
        self.headroom = headroom
        self.rng = np.random.default_rng(seed)

    def draw(self):
        return self.rng.standard_normal((EXAMPLES, COUNT)) @ self.root.T + self.headroom


def estimates(drawn, n=EXAMPLES):
    """Of all thresholds, from the first examples."""
    means, resampled = drawn[:n].mean(0), WEIGHTS[n] @ drawn[:n]
    return [Estimate(float(m), r) for m, r in zip(means, resampled.T, strict=True)]


def kept(whole, asked):
    return [k for k, e in whole.items() if judge(EXAMPLES, e, None, asked, PLAN) == "kept"]


def is_wrong(world, some):
    """Whether the fastest of those kept loses more than is allowed."""
    return bool(some) and world.headroom[max(some, key=lambda k: SPEEDUPS[k])] < 0


# ------------------------------------------------------------------------------ every one decoded


SEED = 0
LIMIT = np.full(COUNT, -1e-9)
# The slowest third are clearly good enough, the rest at the limit.
MOST = np.where(np.argsort(np.argsort(SPEEDUPS)) < COUNT // 3, 3 / math.sqrt(EXAMPLES), LIMIT)


@pytest.mark.parametrize(
    ("common", "reach", "headroom"), [(0.8, 0, LIMIT), (0.5, 3, LIMIT), (0.8, 0, MOST)]
)
def test_a_grids_choice_is_wrong_in_at_most_5_percent_of_searches(common, reach, headroom):
    world, wrong = World(common, reach, headroom, seed=SEED), dict.fromkeys(("ours", "single"), 0)
    for _ in range(SEARCHES):
        whole = dict(enumerate(estimates(world.draw())))
        for name, asked in (
            ("ours", margin(list(whole.values()), PLAN)),
            ("single", ONE_BY_ONE),
        ):
            wrong[name] += is_wrong(world, kept(whole, asked))
    assert wrong["ours"] / SEARCHES <= 1 - CONFIDENCE
    assert wrong["single"] / SEARCHES > 2 * (1 - CONFIDENCE)


def test_it_keeps_more_than_bonferroni_keeps():
    """That holds too; but errors that are correlated need less."""
    world = World(0.8, 0, np.full(COUNT, 2.5 / math.sqrt(EXAMPLES)), seed=0)
    bonferroni, ours, theirs = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / COUNT), 0, 0
    for _ in range(100):
        whole = dict(enumerate(estimates(world.draw())))
        asked = margin(list(whole.values()), PLAN)
        assert asked < bonferroni - 0.3
        ours, theirs = ours + len(kept(whole, asked)), theirs + len(kept(whole, bonferroni))
    assert ours > 1.2 * theirs


# ------------------------------------------------------------------------------ one after another


def sequential(world, budget=8 * EXAMPLES):
    """A search that tries one after the other, gives up early and uses what it knows.

    It knows how headrooms hang together, and always goes where it expects the most: no search is
    better at finding the lucky ones.

    Returns:
        Those decoded to the end, by number.
    """
    drawn, asked, spent = world.draw(), margin([], PLAN), 0
    looks = {n: estimates(drawn, n) for n in PLAN.looks}
    whole: dict[int, Estimate] = {}
    tried: dict[int, tuple[float, int]] = {}  # mean, examples
    while spent + EXAMPLES <= budget and len(tried) < COUNT:
        k = most_promising(world, tried)
        for n in PLAN.looks:
            tried[k] = looks[n][k].value, n
            if n == EXAMPLES:
                whole[k] = looks[n][k]
                asked = margin(list(whole.values()), PLAN)
            if judge(n, looks[n][k], None, asked, PLAN) is not None:
                break
        spent += n
    return whole


def most_promising(world, tried):
    """The untried one with the highest expected mean; at first any."""
    left = [k for k in range(COUNT) if k not in tried]
    if len(tried) < 3:
        return int(world.rng.choice(left))
    known = list(tried)
    means, counts = np.array(list(tried.values())).T
    # The first examples are shared: means of n and of m of them covary as those of the more.
    between = world.correlations[np.ix_(known, known)] / np.maximum.outer(counts, counts)
    towards = world.correlations[np.ix_(left, known)] / EXAMPLES
    return left[int(np.argmax(towards @ np.linalg.solve(between, means)))]


@pytest.mark.parametrize(("common", "reach"), [(0.8, 0), (0.4, 4)])
def test_a_sequential_choice_is_wrong_in_at_most_5_percent_of_searches(common, reach):
    world = World(common, reach, LIMIT, seed=SEED)
    wrong = dict.fromkeys(("ours", "single", "whole alone"), 0)
    for _ in range(SEARCHES):
        whole = sequential(world)
        found = list(whole.values())
        for name, asked in (
            ("ours", margin(found, PLAN)),
            ("single", ONE_BY_ONE),
            ("whole alone", margin(found, Plan(EXAMPLES, len(found), CONFIDENCE))),
        ):
            wrong[name] += is_wrong(world, kept(whole, asked))
    assert wrong["ours"] / SEARCHES <= 1 - CONFIDENCE
    assert wrong["single"] / SEARCHES > 1.5 * (1 - CONFIDENCE)
    assert wrong["whole alone"] / SEARCHES > 1 - CONFIDENCE  # those that were given up count too


# ------------------------------------------------------------------------------ the parts


def certain(value, error, seed=0):
    """An estimate with exactly this standard error."""
    drawn = np.random.default_rng(seed).standard_normal(1000)
    return Estimate(value, value + error * (drawn - drawn.mean()) / drawn.std())


def test_the_margin_of_one_candidate_is_students():
    assert margin([], Plan(10_000, 1, 0.95)) == pytest.approx(1.645, abs=0.05)
    assert margin([certain(1, 1)], Plan(10_000, 1, 0.95)) == pytest.approx(1.645, abs=0.05)
    assert margin([], Plan(6, 1, 0.95)) == pytest.approx(2.015, abs=0.07)  # 5 degrees of freedom


def test_the_margin_grows_with_candidates_and_with_confidence():
    counts = [margin([], Plan(200, count, 0.95)) for count in (1, 5, 50, 200)]
    assert counts == sorted(set(counts))
    sure = [margin([], Plan(200, 50, confidence)) for confidence in (0.5, 0.9, 0.99, 0.999)]
    assert sure == sorted(set(sure))
    assert sure[-1] > sure[-2] + 0.4  # a thousand resamples alone would not tell these apart


def test_candidates_that_always_agree_count_once():
    same = [certain(1, error) for error in (1, 2, 3)]
    one = margin(same[:1], Plan(200, 1, 0.95))
    assert margin(same, Plan(200, 3, 0.95)) == pytest.approx(one, abs=0.06)
    apart = [certain(1, 1, seed) for seed in range(3)]
    assert margin(apart, Plan(200, 3, 0.95)) > one + 0.3


def test_a_candidate_that_writes_what_the_large_model_writes_is_kept():
    equal = Estimate(0.0, np.zeros(100))
    plan = Plan(100, 3, 0.95)
    assert margin([equal], Plan(100, 1, 0.95)) == 0
    assert judge(100, equal, None, 3.0, plan) == "kept"
    assert judge(32, equal, None, 3.0, plan) is None


@pytest.mark.parametrize(
    ("samples", "headroom", "lead", "said"),
    [
        (200, (2.01, 1.0), None, "kept"),
        (200, (1.99, 1.0), None, "too lossy"),
        (200, (2.01, 1.0), (-5.0, 0.1), "kept"),  # the fastest of those kept is chosen anyway
        (32, (1.99, 1.0), None, None),
        (32, (-5.0, 1.0), None, "too lossy"),
        (32, (5.0, 1.0), (-0.5, 0.1), "too slow"),
        (32, (5.0, 1.0), (-0.1, 0.1), None),
        (32, (5.0, 1.0), (0.0, 0.0), "too slow"),  # as fast always: nothing to be gained
    ],
)
def test_judge(samples, headroom, lead, said):
    lead = None if lead is None else certain(*lead)
    assert judge(samples, certain(*headroom), lead, 2.0, Plan(200, 40, 0.95)) == said


def test_the_bound_is_expected_to_tighten():
    seen, plan = certain(1.0, 1.0), Plan(200, 40, 0.95)
    assert expected_bound(50, seen, 2.0, plan) == pytest.approx(0.0)
    assert expected_bound(200, seen, 2.0, plan) == pytest.approx(-1.0) == seen.bound(2.0)


def test_looks_end_with_all_examples():
    assert Plan(200, 1, 0.95).looks == (32, 48, 72, 108, 162, 200)
    assert [Plan(n, 1, 0.95).looks for n in (8, 32, 33)] == [(8,), (32,), (32, 33)]


def test_few_good_candidates_are_given_up_by_mistake():
    """One that would be kept in the end is given up before in at most 5 % of cases."""
    world, asked = World(0.8, 0, np.full(COUNT, 3.0 / math.sqrt(EXAMPLES)), seed=0), 2.5
    lost = good = 0
    for _ in range(40):
        drawn = world.draw()
        looks = {n: estimates(drawn, n) for n in PLAN.looks}
        for k in kept(dict(enumerate(looks[EXAMPLES])), asked):
            good += 1
            lost += any(judge(n, looks[n][k], None, asked, PLAN) for n in PLAN.looks[:-1])
    assert good > 500
    assert lost / good <= 1 - CONFIDENCE
