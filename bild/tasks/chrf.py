"""chrF2 of a corpus as sacrebleu computes it, to the last digit, from counts of each example.

sacrebleu counts a corpus anew for each system, and keeps the n-grams of all references in memory
while it does. Here an example's counts are made once, and only they are kept.

Reference: Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

ORDER = 6  # characters of the longest n-grams
BETA = 2  # how many times as much recall counts as precision


def chrf_counts(prediction: str, reference: str) -> tuple[int, ...]:
    """Of each order n-grams of the prediction, of the reference, and in both; (3 * ORDER,)."""
    own, expected = ("".join(text.split()) for text in (prediction, reference))
    counts: list[int] = []
    for n in range(1, ORDER + 1):
        theirs = _grams(expected, n)
        mine = _grams(own, n)
        both = sum([min(k, theirs[gram]) for gram, k in mine.items() if gram in theirs])
        # Where the reference has none, those of the prediction do not count.
        counts += [mine.total() if theirs else 0, theirs.total(), both]
    return tuple(counts)


def chrf(counts: Sequence[int]) -> float:  # (3 * ORDER,) -> 0..100
    """chrF2 of summed counts: the F-measure of precision and recall, averaged over the orders."""
    precision = recall = 0.0
    orders = 0
    for predicted, expected, both in zip(counts[0::3], counts[1::3], counts[2::3], strict=True):
        if predicted > 0 and expected > 0:
            precision += both / predicted
            recall += both / expected
            orders += 1
    if not orders or not precision + recall:
        return 0.0
    precision /= orders
    recall /= orders
    score = (1 + BETA**2) * precision * recall
    score /= BETA**2 * precision + recall
    return 100 * score


def _grams(text: str, n: int) -> Counter[str]:
    return Counter([text[i : i + n] for i in range(len(text) - n + 1)])
