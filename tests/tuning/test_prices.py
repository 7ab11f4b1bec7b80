"""Prices of forwards: what was planted is found, whatever the small model reads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tiny import tiny_t5

from bild import BiLDConfig, BiLDModel, DecodeStats
from bild.checkpoints.drafter import make_drafter
from bild.checkpoints.early_exit import early_exit
from bild.evaluation.arms import BILD, SMALL, VANILLA, ArmId, Case, Outcome
from bild.evaluation.loop import ArmSample, Item, Loop, Sample
from bild.evaluation.own import OwnArm
from bild.tasks.registry import Thresholds
from bild.tuning.prices import CALIBRATION, measure_costs, pair_prices

LARGE, TOKEN, SMALL_FORWARD, ENCODER = 1.0e-3, 5.0e-5, 1.2e-4, 2.0e-3
ALONE = 2.0e-4  # a forward of the small model when it writes alone


@dataclass
class Work:
    """As much of a `Workload` as prices look at."""

    runner: BiLDModel
    bild: BiLDConfig = BiLDConfig()  # noqa: RUF009 (frozen)

    @property
    def small(self):
        return self.runner.small

    @property
    def config(self):
        return self

    def with_thresholds(self, thresholds):
        return Work(self.runner, BiLDConfig(thresholds.fallback, thresholds.rollback))

    def loop(self):
        sources = [torch.tensor([[i, 1]]) for i in range(3, 3 + CALIBRATION)]
        return Loop([Item(str(i), None, Case(ids, 9)) for i, ids in enumerate(sources)])


def rounds(fallback, chance):
    """Counts of one output: the lower the fallback threshold, the longer the drafts."""
    windows = chance.randint(4, 12)
    drafts = [chance.randint(0, round(8 * (1 - fallback))) for _ in range(windows)]
    return {
        "large_forwards": windows,
        "large_tokens_fed": windows + sum(drafts),
        "small_forwards": windows + sum(drafts),
    }


def plant(monkeypatch, read, noise=0.0, interrupted=0.0):
    """Let arms take planted seconds.

    Args:
        read: seconds of a source in the small model's hands: in a pair, and alone.
        noise: by how much each figure is off at most, relative.
        interrupted: part of the examples that take ten times as long.
    """
    chance = random.Random(5)

    def run(arm, case):
        def about(seconds):
            return seconds * (1 + chance.uniform(-noise, noise))

        tokens = chance.randint(8, 40)
        if arm.kind == VANILLA:
            did = DecodeStats(large_forwards=tokens, large_tokens_fed=tokens)
            source, decoder = ENCODER, LARGE * tokens
        elif arm.kind == SMALL:
            did = DecodeStats(small_forwards=tokens, small_tokens_fed=tokens)
            source, decoder = read[1], ALONE * tokens
        else:
            did = DecodeStats(**rounds(arm.bild.fallback_threshold, chance))
            further = did.large_tokens_fed - did.large_forwards
            source = ENCODER + read[0]
            decoder = LARGE * did.large_forwards + TOKEN * further
            decoder += SMALL_FORWARD * did.small_forwards
        slow = 10 if chance.random() < interrupted else 1
        source, decoder = about(source), slow * about(decoder)
        return Outcome([5, 1], source + decoder, source, did)

    monkeypatch.setattr(OwnArm, "run", run)


def smalls(large):
    """Small models and what their source takes: in a pair, and alone."""
    begin = 1.0e-4  # of the decoder's keys and values
    return {
        "with an encoder": (tiny_t5(7, layers=1), (8.0e-4, 8.0e-4)),
        "drafter": (make_drafter(large), (begin, ENCODER + begin)),
        "early exit": (early_exit(large, 1), (begin, ENCODER + begin)),
    }


@pytest.mark.parametrize("kind", ["with an encoder", "drafter", "early exit"])
def test_a_pair_pays_for_an_encoder_once(monkeypatch, kind):
    """Alone a drafter, or an early exit, runs the large model's encoder, which a pair has run."""
    large = tiny_t5(1)
    small, read = smalls(large)[kind]
    plant(monkeypatch, read)
    (costs,) = measure_costs([Work(BiLDModel(large, small))], Thresholds(0.5, 2.0))
    assert costs.large_encoder == pytest.approx(ENCODER)
    assert costs.small_encoder == pytest.approx(read[0])


def test_forwards_have_the_price_that_they_have_in_pairs(monkeypatch):
    """Not that of the small model alone, also where some examples were interrupted."""
    work = Work(BiLDModel(tiny_t5(1), tiny_t5(7, layers=1)))
    plant(monkeypatch, (8.0e-4, 8.0e-4), noise=0.02, interrupted=0.1)
    (costs,) = measure_costs([work], Thresholds(0.5, 2.0))
    assert costs.large_forward == pytest.approx(LARGE, rel=0.02)
    assert costs.small_forward == pytest.approx(SMALL_FORWARD, rel=0.2)
    assert costs.large_token == pytest.approx(TOKEN, rel=0.6)
    # What it is for: the seconds of pairs, at thresholds near and far.
    chance = random.Random(9)
    for fallback in (0.1, 0.5, 0.9):
        did = DecodeStats(**rounds(fallback, chance))
        further = did.large_tokens_fed - did.large_forwards
        true = ENCODER + 8.0e-4 + LARGE * did.large_forwards
        true += TOKEN * further + SMALL_FORWARD * did.small_forwards
        assert priced(costs, did) == pytest.approx(true, rel=0.03)


def test_small_models_of_one_shape_have_one_price(monkeypatch):
    large = tiny_t5(1)
    pairs = [BiLDModel(large, tiny_t5(i, layers=1)) for i in (7, 8)]
    pairs.append(BiLDModel(large, tiny_t5(9, layers=1, decoder_layers=1)))
    plant(monkeypatch, (8.0e-4, 8.0e-4), noise=0.05)
    first, second, other = measure_costs([Work(p) for p in pairs], Thresholds(0.5, 2.0))
    assert first == second
    assert first.large_forward == other.large_forward
    assert first.large_token == other.large_token
    assert first.small_forward != other.small_forward


def done(seconds, **counts):
    return ArmSample(None, [], seconds, 0.0, DecodeStats(**counts))


pair = partial(done, large_forwards=10, large_tokens_fed=30)


@pytest.mark.parametrize(
    ("runs", "large", "expected"),
    [
        # Copies alone: no small forwards, so the further tokens have all that is left.
        ([pair(14.0)], 1.0, (0.2, [0.0])),
        # No further tokens: the small forwards have all that is left.
        ([done(13.0, large_forwards=10, large_tokens_fed=10, small_forwards=10)], 1.0, (0, [0.3])),
        # Points of one place tell no slope.
        ([pair(13.0, small_forwards=30), pair(16.0, small_forwards=30)], 1.0, (0, [0.15])),
        # Longer drafts that took less time: no price is negative.
        (
            [
                done(14.0, large_forwards=10, large_tokens_fed=20, small_forwards=20),
                done(13.0, large_forwards=10, large_tokens_fed=30, small_forwards=30),
            ],
            *(1.0, (0, [0.15])),
        ),
        ([pair(9.0, small_forwards=30)], 1.0, (0, [0.0])),
    ],
)
def test_prices_of_few_and_odd_points(runs, large, expected):
    token, (forward,) = pair_prices([runs], large)
    assert (token, [forward]) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def priced(costs, did):
    """Seconds of a pair that did this, by its price."""
    pair = ArmSample(None, [], 0.0, 0.0, did)
    sample = Sample(0, 0, "", None, 4, False, {ArmId(VANILLA): pair, ArmId(BILD): pair})
    return costs(sample, sample)[1]
