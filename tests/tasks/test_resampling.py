"""The bootstrap: against plain loops, against theory, in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from bild.errors import BildError
from bild.tasks import resampling
from bild.tasks.resampling import interval, resampled_sums


def test_it_is_what_a_plain_loop_gives():
    rows = np.random.default_rng(0).normal(size=(17, 3))
    rng = np.random.default_rng(5)
    plain = [rows[rng.integers(17, size=17)].sum(axis=0) for _ in range(40)]
    assert resampled_sums(rows, 40, seed=5) == pytest.approx(np.array(plain))


def test_several_runs_are_drawn_as_well():
    """Each drawn run at each drawn example: a plain loop over the same draws."""
    rows = np.random.default_rng(0).normal(size=(4, 9, 2))
    examples, runs = np.random.default_rng(5), np.random.default_rng([5, 1])
    plain = []
    for _ in range(30):
        drawn = rows[:, examples.integers(9, size=9)]
        plain.append(drawn[runs.integers(4, size=4)].sum(axis=(0, 1)))
    assert resampled_sums(rows, 30, seed=5) == pytest.approx(np.array(plain))


def test_one_run_is_no_run():
    rows = np.random.default_rng(0).normal(size=(9, 2))
    assert np.array_equal(resampled_sums(rows, 20), resampled_sums(rows[None], 20))


@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_how_much_is_held_at_a_time_changes_nothing(monkeypatch, chunk):
    rows = np.random.default_rng(0).integers(0, 9, size=(3, 21, 2))
    whole = resampled_sums(rows, 50)
    monkeypatch.setattr(resampling, "CHUNK", chunk)
    assert np.array_equal(resampled_sums(rows, 50), whole)


def test_columns_and_calls_share_their_draws():
    rows = np.random.default_rng(0).integers(0, 9, size=(50, 2))
    both = resampled_sums(rows, 30)
    assert np.array_equal(both[:, :1], resampled_sums(rows[:, :1], 30))
    assert np.array_equal(resampled_sums(rows, 30), both)
    assert not np.array_equal(resampled_sums(rows, 30, seed=1), both)


def test_counts_stay_exact():
    rows = np.full((1000, 1), 2**40 + 1)
    assert set(resampled_sums(rows, 10).ravel()) == {1000.0 * (2**40 + 1)}


def test_a_data_set_fits_into_little_memory():
    """All draws of CNN/DailyMail's 13,368 examples would take 107 MB, and their rows more."""
    rows = np.random.default_rng(0).normal(size=(13_368, 20))
    tracemalloc.start()
    resampled_sums(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=(2000, 1))
    low, high = interval(resampled_sums(values) / 2000)
    error = 1.96 * values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_it_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        low, high = interval(resampled_sums(rng.exponential(size=(150, 1)), 300, trial) / 150)
        held += low <= 1.0 <= high
    assert 0.88 * 200 <= held <= 0.99 * 200


def test_another_confidence():
    values = np.arange(101.0)
    assert interval(values, 0.5) == (25.0, 75.0)
    assert interval(values) == pytest.approx((2.5, 97.5))


@pytest.mark.parametrize("samples", [0, -1, 2.0, True])
def test_a_number_of_samples_that_is_none(samples):
    with pytest.raises(BildError, match=f"bootstrap samples must be at least 1, got {samples!r}"):
        resampled_sums([[1.0]], samples)


@pytest.mark.parametrize("shape", [(3,), (0, 2), (2, 2, 2, 2)])
def test_rows_of_another_shape(shape):
    with pytest.raises(BildError, match="rows to resample must be"):
        resampled_sums(np.zeros(shape))
