"""The bootstrap of this repository: sums over examples that are drawn anew, many times.

Whatever has an interval here is a function of sums over examples: BLEU of n-gram counts, a mean of
values and their number, a speedup of seconds. So there is one function that draws, and its callers
make of the sums what they need:

    rows = np.stack([baseline_seconds, method_seconds], axis=-1)  # (examples, 2)
    sums = resampled_sums(rows)  # (1000, 2)
    low, high = interval(sums[:, 0] / sums[:, 1])

The columns of one call share their draws, which is what makes a comparison paired (Koehn,
"Statistical Significance Tests for Machine Translation Evaluation", 2004); so do two calls with one
seed and as many examples. Pure NumPy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bild.errors import BildError

Floats = npt.NDArray[np.float64]

SAMPLES = 1000
SEED = 12345
CHUNK = 1 << 21  # draws held at a time: 16 MiB of them, and as much of their counts


def resampled_sums(rows: npt.ArrayLike, samples: int = SAMPLES, seed: int = SEED) -> Floats:
    """The sums of as many examples as there are, drawn with replacement, again and again.

    With several runs of the same examples, runs and examples are both drawn, and every run drawn is
    taken at the examples drawn (Owen, "The pigeonhole bootstrap", 2007): what changes from run to
    run is then in the interval, which no example of a single run shows. Three runs are the least
    for that to mean anything.

    Args:
        rows: what to sum, (examples, K) or (runs, examples, K). Integers up to 2**53 stay exact.
        samples: how often to draw.
        seed: of the draws; they do not depend on K.

    Returns:
        (samples, K), in memory that does not grow with samples times examples.

    Raises:
        BildError: `samples` below 1, or no rows.
    """
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise BildError(f"the number of bootstrap samples must be at least 1, got {samples!r}")
    values = np.asarray(rows, dtype=np.float64)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or not values.size:
        raise BildError(
            f"rows to resample must be (examples, K) or (runs, examples, K), got {values.shape}"
        )
    runs, examples, columns = values.shape
    draws, run_draws = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    flat = values.swapaxes(0, 1).reshape(examples, runs * columns)  # (E, R * K)
    sums = np.empty((samples, columns))
    step = max(1, CHUNK // examples)
    for start in range(0, samples, step):
        part = sums[start : start + step]  # (C, K)
        counts = _counts(draws, len(part), examples)  # (C, E)
        by_run = (counts @ flat).reshape(len(part), runs, columns)
        if runs == 1:
            part[:] = by_run[:, 0]
        else:
            part[:] = np.einsum("cr,crk->ck", _counts(run_draws, len(part), runs), by_run)
    return sums


def _counts(rng: np.random.Generator, samples: int, n: int) -> Floats:
    """How often each of n things is drawn in n draws, (samples, n)."""
    drawn = rng.integers(n, size=(samples, n))
    drawn += n * np.arange(samples)[:, None]
    counted = np.bincount(drawn.ravel(), minlength=samples * n)
    return counted.reshape(samples, n).astype(np.float64)


def interval(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """The middle `confidence` of resampled values, a percentile interval (low, high)."""
    low, high = np.quantile(np.asarray(values), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)
