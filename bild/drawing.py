"""What tokens are drawn from, where outputs are not greedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bild.errors import BildError


@dataclass(frozen=True)
class Distribution:
    """What is left of a model's distribution before a token is drawn from it.

    Attributes:
        temperature: scores are divided by it before a token is drawn.
        top_k: tokens are drawn from so many likeliest; 0 for all.
        top_p: tokens are drawn from the likeliest that together have this probability.

    Raises:
        BildError: a value outside its range, by name and value.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise BildError(f"temperature must be above 0 and finite, got {self.temperature}")
        if self.top_k < 0:
            raise BildError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise BildError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of `generate`."""
        return {**asdict(self), "do_sample": True}

    @property
    def described(self) -> str:
        """In words, for headings."""
        return f"temperature {self.temperature:g}, top-k {self.top_k}, top-p {self.top_p:g}"
