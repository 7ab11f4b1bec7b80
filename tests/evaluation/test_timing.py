"""Seconds and their ratios."""

import time

import numpy as np
import pytest
import torch

from bild.evaluation import timing


def test_timed_measures_the_call():
    result, seconds = timing.timed(torch.device("cpu"), lambda: time.sleep(0.05) or 7)
    assert result == 7
    assert 0.05 <= seconds < 1


def test_speedup_is_the_ratio_of_sums_within_its_interval():
    baseline, method = [2.0, 4.0, 6.0, 100.0], [1.0, 2.0, 3.0, 100.0]
    ratio, low, high = timing.speedup(baseline, method)
    assert ratio == pytest.approx(112 / 106)
    assert 1.0 <= low < ratio < high <= 2.0
    assert timing.speedup(baseline, method) == (ratio, low, high)
    assert timing.speedup([3.0] * 5, [1.0] * 5) == pytest.approx((3.0, 3.0, 3.0))


def test_the_interval_of_several_runs_covers_what_changes_between_them():
    """Each run is off by a factor of its own, which no example of it shows."""
    rng = np.random.default_rng(0)
    held = {"within": 0, "runs": 0}
    trials = 100
    for _ in range(trials):
        examples = rng.lognormal(0, 0.3, 200)
        factors = rng.normal(2.0, 0.15, 8)
        baseline = np.outer(factors, examples) * rng.normal(1, 0.02, (8, 200))
        method = np.outer(np.ones(8), examples) * rng.normal(1, 0.02, (8, 200))
        _, low, high = timing.speedup(baseline[:1], method[:1], samples=200)
        held["within"] += low <= 2.0 <= high
        _, low, high = timing.speedup(baseline, method, samples=200)
        held["runs"] += low <= 2.0 <= high
    assert held["within"] < 0.3 * trials  # one run does not know of the others
    assert held["runs"] > 0.8 * trials
