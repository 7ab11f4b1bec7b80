"""How the outputs of a file are drawn, where they are not greedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bild.config import check_counts
from bild.drawing import Distribution
from bild.errors import BildError


@dataclass(frozen=True)
class Drawing(Distribution):
    """What decides drawn outputs besides the pair and its rules.

    Attributes:
        temperature: scores are divided by it before a token is drawn.
        top_k: tokens are drawn from so many likeliest; 0 for all.
        top_p: tokens are drawn from the likeliest that together have this probability.
        seed: of the random numbers; a text's own follow from it and from the text's line.
        num_return_sequences: outputs of each text; of several each object gets a list.
    """

    seed: int = 0
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        check_counts(self)
        super().__post_init__()
        if self.num_return_sequences < 1:
            raise BildError(
                f"num_return_sequences must be at least 1, got {self.num_return_sequences}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of `generate`."""
        return {n: v for n, v in super().settings.items() if n != "seed"}
