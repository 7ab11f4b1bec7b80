"""How often small models agree with a large one, as a typed file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bild.evaluation.record import Interval, Record
from bild.training.config import AgreementConfig


@dataclass(frozen=True)
class Bin:
    """Positions where the small model's confidence lies between two bounds.

    Attributes:
        low, high: the bounds, 0 to 1.
        positions: how many there are.
        share: of all positions.
        agreement: share of them at which the models agree; None where there are none.
        confidence: its mean over them; None where there are none.
    """

    low: float
    high: float
    positions: int
    share: float
    agreement: float | None
    confidence: float | None


@dataclass(frozen=True)
class Agreement:
    """One small model on the prefixes of one text. Shares and probabilities are 0 to 1.

    Attributes:
        model: label of the small model.
        text: a name of `bild.training.agreement.TEXTS`.
        positions: tokens compared.
        agreement: share of them at which both models' most likely tokens are the same; with an
            interval over resampled examples.
        mean_confidence: the small model's probability of its most likely token.
        calibration_error: mean distance of confidence and agreement, over the bins.
        bins: by confidence.
    """

    model: str
    text: str
    positions: int
    agreement: Interval
    mean_confidence: float
    calibration_error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class AgreementRecord(Record):
    """What `bild.training.agreement.measure` finds; the small models go by their ids.

    Attributes:
        config: the settings.
        results: of each small model on each text.
    """

    kind: ClassVar[str] = "agreement"

    config: AgreementConfig
    results: tuple[Agreement, ...]
