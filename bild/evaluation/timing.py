"""Wall-clock time of decoding: the device is synchronised on both sides, and nothing is hooked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from bild.tasks.resampling import Floats, interval, resampled_sums

Result = TypeVar("Result")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, call: Callable[[], Result]) -> tuple[Result, float]:
    """Run `call` and return its result and its wall-clock seconds."""
    synchronize(device)
    start = time.perf_counter()
    result = call()
    synchronize(device)
    return result, time.perf_counter() - start


def speedup(
    baseline: Sequence[Sequence[float]] | Sequence[float],
    method: Sequence[Sequence[float]] | Sequence[float],
    samples: int = 1000,
    seed: int = 12345,
) -> tuple[float, float, float]:
    """The ratio of summed seconds, baseline over method, with a 95 % bootstrap interval.

    Args:
        baseline, method: seconds of the same examples in the same order, (examples,), or of
            several passes over them, (runs, examples).
        samples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        (ratio, low, high).
    """
    ratio, resampled = resampled_speedups(baseline, method, samples, seed)
    return ratio, *interval(resampled)


def resampled_speedups(
    baseline: Sequence[Sequence[float]] | Sequence[float],
    method: Sequence[Sequence[float]] | Sequence[float],
    samples: int = 1000,
    seed: int = 12345,
) -> tuple[float, Floats]:
    """The ratio of summed seconds, and those of resampled runs and examples, (samples,).

    Both are resampled, as both were drawn: what a machine does from run to run is in the interval
    as soon as there are several runs. One seed draws the same runs and examples for every method.
    """
    pairs = np.stack([baseline, method], axis=-1)  # (examples, 2) or (runs, examples, 2)
    sums = resampled_sums(pairs, samples, seed)
    return float(pairs[..., 0].sum() / pairs[..., 1].sum()), sums[:, 0] / sums[:, 1]
