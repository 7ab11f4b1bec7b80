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
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from transformers import PreTrainedModel

from bild.errors import BildError, first_line
from bild.evaluation.arms import BILD, SMALL, VANILLA, ArmId
from bild.evaluation.codec import decode as decode_json
from bild.evaluation.loop import ArmSample, Sample, decode
from bild.evaluation.own import OwnArm
from bild.evaluation.run import Workload
from bild.files import write_json
from bild.json_files import read_json
from bild.tasks.registry import Thresholds

CALIBRATION = 24  # examples that the costs of a forward are measured on

# (an example by the large model alone, the same by a pair) -> seconds of each.
Price = Callable[[Sample, Sample], tuple[float, float]]


@dataclass(frozen=True)
class Costs:
    """Seconds in one place, for one pair of models.

    Attributes:
        large_forward, small_forward: a decoder forward that is fed one token.
        large_token: each further token of a large forward. (The small model is rarely fed two.)
        large_encoder, small_encoder: a source.
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
            + self.large_token * (both.large_tokens_fed - both.large_forwards)
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
    """What forwards cost here: medians over a few examples, which all models decode in turn.

    What a token more in a large forward costs depends on how many there are, the second being the
    dearest; so it is measured with thresholds as they are in use.

    Args:
        works: of one large model on the same examples, each with another small model.
        thresholds: of the pairs.

    Returns:
        Costs with each of the small models. The large model has one price in all of them, and so
        have small models of one shape: between those the clock would only find its own noise.
    """
    shapes = [_shape(work.small) for work in works]
    alone = OwnArm(VANILLA, works[0].runner)
    smalls = [OwnArm(SMALL, work.runner, label=str(i)) for i, work in enumerate(works)]
    pairs = [
        OwnArm(BILD, work.runner, work.with_thresholds(thresholds).config.bild, label=str(i))
        for i, work in enumerate(works)
    ]
    timed = decode([alone, *smalls, *pairs], replace(works[0].loop(), runs=1))
    runs = [sample.arms for sample in islice(timed, CALIBRATION)]

    large, large_encoder = _forward_and_source(runs, [alone.id])
    own = [
        _forward_and_source(
            runs, [arm.id for arm, other in zip(smalls, shapes, strict=True) if other == shape]
        )
        for shape in shapes
    ]
    token = _token(runs, [pair.id for pair in pairs], large, [forward for forward, _ in own])
    return [Costs(large, token, forward, large_encoder, encoder) for forward, encoder in own]


def _forward_and_source(
    runs: Sequence[Mapping[ArmId, ArmSample]], arms: Sequence[ArmId]
) -> tuple[float, float]:
    """Seconds of a decoder forward and of a source, by arms of one model alone."""
    each = [run[arm] for run in runs for arm in arms]
    encoders = [done.encoder_seconds or 0.0 for done in each]
    forwards = [
        (done.seconds - encoder) / (done.did.large_forwards + done.did.small_forwards)
        for done, encoder in zip(each, encoders, strict=True)
    ]
    return median(forwards), median(encoders)


def _token(
    runs: Sequence[Mapping[ArmId, ArmSample]],
    pairs: Sequence[ArmId],
    large: float,
    smalls: Sequence[float],
) -> float:
    """Seconds of each further token of a large forward: what is left of the pairs' time."""
    left = []
    for pair, small in zip(pairs, smalls, strict=True):
        for done in (run[pair] for run in runs):
            did = done.did
            further = did.large_tokens_fed - did.large_forwards
            if further:
                forwards = large * did.large_forwards + small * did.small_forwards
                left.append((done.seconds - (done.encoder_seconds or 0.0) - forwards) / further)
    return max(0.0, median(left)) if left else 0.0


def _shape(model: PreTrainedModel | None) -> list[torch.Size]:
    assert model is not None
    return [p.shape for p in model.parameters()]
