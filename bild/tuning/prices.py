"""What an example costs: its forwards, priced with what a forward costs on this machine.

The clock of a shared machine drifts by more than thresholds differ (in the earlier reproduction's
sweep of WMT 2014 the runs at rollback 2 took a fifth less time than their neighbours at 1 and 3),
and whoever takes the fastest of many noisy measurements takes the luckiest. Priced forwards are the
same every time: thresholds decoded hours apart can be compared, and the large model alone is
decoded once. A price is a model, though: time what was chosen, on other examples.

Prices are seconds of one place: the machine, its threads, the engine as it was built, the versions
and the commit (`bild.evaluation.environment.Environment.place`). They lie in the folder of work
done in that place (`bild.evaluation.folder.own_folder`); in another place they are measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, combinations, islice
from pathlib import Path
from statistics import median

import torch
from transformers import PreTrainedModel

from bild.errors import BildError, first_line
from bild.evaluation.arms import BILD, VANILLA, ArmId
from bild.evaluation.codec import decode as decode_json
from bild.evaluation.loop import ArmSample, Sample, decode
from bild.evaluation.own import OwnArm
from bild.evaluation.run import Workload
from bild.files import write_json
from bild.generation.stats import DecodeStats
from bild.json_files import read_json
from bild.tasks.registry import Thresholds

CALIBRATION = 24  # examples that the costs of a forward are measured on
LEAST_STEP = 0.02  # further tokens a small forward, between points that a slope is told from

# (an example by the large model alone, the same by a pair) -> seconds of each.
Price = Callable[[Sample, Sample], tuple[float, float]]


@dataclass(frozen=True)
class Costs:
    """Seconds in one place, for one pair of models.

    Attributes:
        large_forward: a decoder forward that is fed one token, of the large model alone.
        large_token: each further token of a large forward. (The small model is rarely fed two.)
        small_forward: a decoder forward of the small model, in a pair.
        large_encoder: a source, of the large model alone.
        small_encoder: what a source takes a pair besides: the small model's encoder, if it has one
            of its own, and the keys and values that its decoder reads.
    """

    large_forward: float
    large_token: float
    small_forward: float
    large_encoder: float
    small_encoder: float

    def __call__(self, alone: Sample, pair: Sample) -> tuple[float, float]:
        """The `Price` of an example: its seconds by the large model alone, and by the pair."""
        large, both = alone.of(VANILLA).did, pair.of(BILD).did
        return (
            self.large_encoder + self.large_forward * large.large_forwards,
            self.large_encoder
            + self.large_forward * both.large_forwards
            + self.large_token * _further_tokens(both)
            + self.small_encoder
            + self.small_forward * both.small_forwards,
        )


def clock(_: Sample, pair: Sample) -> tuple[float, float]:
    """The measured `Price` of an example, which the large model decoded again beside the pair."""
    return pair.of(VANILLA).seconds, pair.of(BILD).seconds


def known_costs(
    path: Path, works: Mapping[str, Workload], thresholds: Thresholds
) -> dict[str, Costs]:
    """The costs with each small model, measured once: those in the file, where it is there.

    Args:
        path: the file, in a folder of this place alone.
        works: of one large model on the same examples, by a label of the small model.
        thresholds: to measure with.

    Returns:
        Costs by label.

    Raises:
        BildError: the file holds something else. It is not made anew: beside it lie examples that
            were chosen by its prices.
    """
    if not path.exists():
        costs = measure_costs(list(works.values()), thresholds)
        write_json(path, dict(zip(works, map(asdict, costs), strict=True)))
    try:
        known = decode_json(dict[str, Costs], read_json(path, "it is to hold prices"))
        return {label: known[label] for label in works}
    except (ValueError, KeyError, RecursionError) as error:  # also BildError and of JSON and UTF-8
        raise BildError(
            f"{str(path)!r} does not hold the prices of this search ({first_line(error)}); "
            "remove it, and they are measured anew"
        ) from None


def measure_costs(works: Sequence[Workload], thresholds: Thresholds) -> list[Costs]:
    """What forwards cost here, over a few examples, which all arms decode in turn.

    The large model's prices are those of the large model alone. What the small model adds is told
    from the pairs, not from the small model alone: alone it may run an encoder that no pair runs
    for it (a drafter's is the large model's, and so is that of early exit), and its forwards take
    other times than between large ones, a call each or all in one.

    Each pair is timed with two fallback thresholds, on either side of the given one, since lower
    ones write more tokens between two large forwards. (`pair_prices` has the rest.)

    Args:
        works: of one large model on the same examples, each with another small model.
        thresholds: in the middle of those that are to be priced.

    Returns:
        Costs with each of the small models. The large model has one price in all of them, and so
        have small models of one shape: between those the clock would only find its own noise.
    """
    alone = OwnArm(VANILLA, works[0].runner)
    pairs = [_around(work, thresholds, label=str(i)) for i, work in enumerate(works)]
    timed = decode([alone, *chain(*pairs)], replace(works[0].loop(), runs=1))
    runs = [sample.arms for sample in islice(timed, CALIBRATION)]

    large_encoder = median(_encoder(run[alone.id]) for run in runs)
    large = median(_decoder(run[alone.id]) / run[alone.id].did.large_forwards for run in runs)
    shapes = [_shape(work.small) for work in works]
    alike = [[a for a, other in zip(pairs, shapes, strict=True) if other == s] for s in shapes]
    ids = [[arm.id for arm in chain(*arms)] for arms in alike]
    token, forwards = pair_prices([[run[i] for run in runs for i in own] for own in ids], large)
    return [
        Costs(large, token, forward, large_encoder, _source(runs, alone.id, own))
        for forward, own in zip(forwards, ids, strict=True)
    ]


def pair_prices(pairs: Sequence[Sequence[ArmSample]], large: float) -> tuple[float, list[float]]:
    """What a further token of a large forward costs, and a small forward of each small model.

    A pair's seconds, without the source's, are `large` times its large forwards, and a rest. The
    rest for one small forward is a line over the further tokens for one small forward: its slope
    is the price of a further token, its height that of a small forward. The line is that of Theil
    and Sen, of medians, for what interrupts a process takes far longer than a forward.

    `large` is not told from the pairs as well. Nearly every small forward leads to a further token
    of a large forward or, where its token is thrown away, to a large forward: of such figures only
    two prices can be told, and what a large forward takes longer in a pair than alone is in the
    sum of the others, as it should be.

    Args:
        pairs: what pairs did, by their small model.
        large: seconds of a large forward of one token.
    """
    points = [[_point(done, large) for done in own if done.did.small_forwards] for own in pairs]
    slopes = [
        (y2 - y1) / (x2 - x1)
        for own in points
        for (x1, y1), (x2, y2) in combinations(own, 2)
        if abs(x2 - x1) > LEAST_STEP
    ]
    slopes += [
        _rest(d, large) / _further_tokens(d.did) for own in pairs for d in own if _only_copies(d)
    ]
    token = max(0.0, median(slopes)) if slopes else 0.0
    heights = [[y - token * x for x, y in own] for own in points]
    return token, [max(0.0, median(own)) if own else 0.0 for own in heights]


def _point(done: ArmSample, large: float) -> tuple[float, float]:
    """For one small forward: further tokens of large forwards, and the rest of the seconds."""
    forwards = done.did.small_forwards
    return _further_tokens(done.did) / forwards, _rest(done, large) / forwards


def _rest(done: ArmSample, large: float) -> float:
    return _decoder(done) - large * done.did.large_forwards


def _only_copies(done: ArmSample) -> bool:
    """Whether tokens were drafted without the small model: what is left is theirs alone."""
    return not done.did.small_forwards and _further_tokens(done.did) > 0


def _further_tokens(did: DecodeStats) -> int:
    return did.large_tokens_fed - did.large_forwards


def _around(work: Workload, thresholds: Thresholds, label: str) -> list[OwnArm]:
    """A pair halfway between the given fallback threshold and 0, and halfway to 1."""
    both = (replace(thresholds, fallback=(thresholds.fallback + end) / 2) for end in (0.0, 1.0))
    return [
        OwnArm(BILD, work.runner, work.with_thresholds(own).config.bild, label, own) for own in both
    ]


def _source(runs: Sequence[Mapping[ArmId, ArmSample]], alone: ArmId, pairs: list[ArmId]) -> float:
    """Seconds that a source takes pairs beyond those that it takes the large model alone."""
    return max(0.0, median(_encoder(run[i]) - _encoder(run[alone]) for run in runs for i in pairs))


def _encoder(done: ArmSample) -> float:
    return done.encoder_seconds or 0.0


def _decoder(done: ArmSample) -> float:
    return done.seconds - _encoder(done)


def _shape(model: PreTrainedModel | None) -> list[torch.Size]:
    assert model is not None
    return [p.shape for p in model.parameters()]
