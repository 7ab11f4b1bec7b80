"""A pair of models without models: tokens are drawn, decoding follows the algorithm's rules.

For each token of an example it is fixed how sure the small model is of its own proposal, whether
the large model agrees, and how far off it finds the proposal. Sure proposals are seldom wrong, a
proposal that differs is seldom right, and the large model is often wrong itself: so quality and
speed trade off over the two thresholds as they do with real pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bild.evaluation.arms import ArmId, Case, Outcome
from bild.evaluation.loop import Item, Loop
from bild.generation.stats import DecodeStats

WINDOW = 10


class Oracle:
    """Decodes `total` drawn examples and counts what it decodes."""

    def __init__(self, total, seed=0, stop_after=None):
        rng = np.random.default_rng(seed)
        self.examples = [self._draw(rng) for _ in range(total)]
        self.decoded = []  # (pair or None, index), in order
        self.stop_after = stop_after

    @staticmethod
    def _draw(rng):
        n = int(rng.integers(10, 30))
        sure = rng.beta(1.2, 0.6, n)
        agrees = rng.random(n) < 0.35 + 0.64 * sure
        distance = np.where(agrees, rng.exponential(0.2, n), rng.exponential(3.0, n))
        reference = rng.integers(300, size=n)
        large = np.where(rng.random(n) < 0.62, reference, rng.integers(300, size=n))
        differs = np.where(rng.random(n) < 0.25, reference, rng.integers(300, size=n))
        return sure, agrees, distance, reference, large, np.where(agrees, large, differs)

    def arms(self, pair):
        """What decodes with a pair of thresholds, or as the large model alone."""
        return [OracleArm(self, pair)]

    @property
    def loop(self):
        """The examples: a case's only source token is its number."""
        items = [
            Item(str(i), self._text(example[3]), Case(torch.tensor([[i]]), 1))
            for i, example in enumerate(self.examples)
        ]
        return Loop(items, to_text=self._text)

    def decode(self, pair, index):
        if len(self.decoded) == self.stop_after:
            raise KeyboardInterrupt
        self.decoded.append((pair, index))
        tokens, stats = self._alone(index) if pair is None else self._pair(index, pair)
        return Outcome([int(token) for token in tokens], 0.0, 0.0, stats)

    @staticmethod
    def _text(tokens):
        return " ".join(f"w{token}" for token in tokens)

    def _alone(self, index):
        large = self.examples[index][4]
        n = len(large)
        return large, DecodeStats(generated_tokens=n, large_forwards=n, large_tokens_fed=n)

    def _pair(self, index, pair):
        sure, agrees, distance, _, large, small = self.examples[index]
        end, out, checked = len(sure), [], 0
        fallbacks = rollbacks = large_forwards = small_forwards = fed = 0
        while len(out) < end:
            while len(out) < end and len(out) - checked < WINDOW:
                small_forwards += 1
                if sure[len(out)] < pair.fallback:
                    fallbacks += 1
                    break
                out.append(small[len(out)])
            if len(out) == end:
                break
            large_forwards += 1
            fed += len(out) - checked + 1
            for i in range(checked, len(out)):
                if distance[i] > pair.rollback and not agrees[i]:
                    rollbacks += 1
                    del out[i:]
                    break
            out.append(large[len(out)])
            checked = len(out)
        return out, DecodeStats(
            generated_tokens=end,
            fallbacks=fallbacks,
            rollbacks=rollbacks,
            large_forwards=large_forwards,
            small_forwards=small_forwards,
            large_tokens_fed=fed,
            small_tokens_fed=small_forwards,
        )


@dataclass(frozen=True)
class OracleArm:
    """The oracle with a pair of thresholds, as an arm."""

    oracle: Oracle
    pair: object
    built = "an oracle"

    @property
    def id(self):
        return ArmId("vanilla" if self.pair is None else "bild")

    def run(self, case):
        return self.oracle.decode(self.pair, int(case.input_ids[0, 0]))
