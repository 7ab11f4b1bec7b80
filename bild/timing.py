"""Wall-clock time of decoding, honestly: the device is synchronised on both sides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

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


class EncoderClock:
    """Within `with EncoderClock(models) as clock:`, adds up the seconds spent in their encoders."""

    def __init__(self, models: Sequence[Any]) -> None:
        self.seconds = 0.0
        self._encoders: list[nn.Module] = [m.get_encoder() for m in models]
        self._started = 0.0
        self._handles: list[Any] = []

    def __enter__(self) -> EncoderClock:
        def before(module: nn.Module, _: Any) -> None:
            synchronize(next(module.parameters()).device)
            self._started = time.perf_counter()

        def after(module: nn.Module, *_: Any) -> None:
            synchronize(next(module.parameters()).device)
            self.seconds += time.perf_counter() - self._started

        for encoder in self._encoders:
            self._handles.append(encoder.register_forward_pre_hook(before))
            self._handles.append(encoder.register_forward_hook(after))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()


def speedup(
    baseline: Sequence[float], method: Sequence[float], samples: int = 1000, seed: int = 12345
) -> tuple[float, float, float]:
    """The ratio of summed seconds, baseline over method, with a 95 % bootstrap interval.

    Args:
        baseline, method: seconds of the same examples, in the same order.
        samples: bootstrap resamples over the examples.
        seed: of the resampling.

    Returns:
        (ratio, low, high).
    """
    ratio, resampled = resampled_speedups(baseline, method, samples, seed)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return ratio, float(low), float(high)


def resampled_speedups(
    baseline: Sequence[float], method: Sequence[float], samples: int = 1000, seed: int = 12345
) -> tuple[float, npt.NDArray[np.float64]]:
    """The ratio of summed seconds, and those of resampled examples, (samples,); as `speedup`.

    One seed draws the same examples for every method timed on as many of them.
    """
    pairs = np.array([baseline, method], dtype=float)  # (2, examples)
    picks = np.random.default_rng(seed).integers(0, pairs.shape[1], (samples, pairs.shape[1]))
    sums = pairs[:, picks].sum(-1)  # (2, resamples)
    return float(pairs[0].sum() / pairs[1].sum()), sums[0] / sums[1]
