"""What happened while outputs were written; plain Python, so that tables need no torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class DecodeStats:
    """What happened while one output was written. Stats of several outputs add up with `+`.

    Of a model that decodes alone only its own forwards and tokens count, as "large" or "small".

    Attributes:
        generated_tokens: tokens of the output, end of sequence included, prompt excluded.
        fallbacks: proposals of the small model thrown away for low confidence.
        rollbacks: times the large model cut the draft back.
        rolled_back_tokens: drafted tokens that those cuts removed.
        drafted_tokens: tokens the small model wrote, rolled back ones included.
        full_windows: hand-overs because `num_small_iters` tokens stood in a row.
        verifications: large forwards that looked at one or more drafted tokens.
        verified_tokens: drafted tokens that a large forward looked at and kept.
        guesses: of what the large model writes, behind which drafting went on, or (where settings
            are lossless) the large model writes another token in the same forward.
        guesses_held: those that were right; each saved a forward of the large model.
        large_forwards, small_forwards: decoder forwards per model.
        large_tokens_fed, small_tokens_fed: tokens those forwards were fed.
    """

    generated_tokens: int = 0
    fallbacks: int = 0
    rollbacks: int = 0
    rolled_back_tokens: int = 0
    drafted_tokens: int = 0
    full_windows: int = 0
    verifications: int = 0
    verified_tokens: int = 0
    guesses: int = 0
    guesses_held: int = 0
    large_forwards: int = 0
    small_forwards: int = 0
    large_tokens_fed: int = 0
    small_tokens_fed: int = 0

    @property
    def fallback_rate(self) -> float:
        """Fallbacks per 100 generated tokens, as the published result files count them."""
        return self._per_100_tokens(self.fallbacks)

    @property
    def rollback_rate(self) -> float:
        """Rollbacks per 100 generated tokens, as the published result files count them."""
        return self._per_100_tokens(self.rollbacks)

    @property
    def large_forward_rate(self) -> float:
        """Large forwards per 100 generated tokens; 100 for the large model alone."""
        return self._per_100_tokens(self.large_forwards)

    @property
    def mean_accepted_length(self) -> float:
        """Drafted tokens kept per verification; NaN when there was none."""
        return self.verified_tokens / self.verifications if self.verifications else math.nan

    def _per_100_tokens(self, count: int) -> float:
        return 100 * count / self.generated_tokens if self.generated_tokens else math.nan

    def __add__(self, other: DecodeStats) -> DecodeStats:
        return DecodeStats(*map(operator.add, _values(self), _values(other)))


_values: Callable[[DecodeStats], tuple[int, ...]] = operator.attrgetter(
    *(field.name for field in fields(DecodeStats))
)
