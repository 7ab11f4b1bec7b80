"""How the outputs of a file are drawn, where they are not greedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bild.config import check_counts
from bild.errors import BildError


@dataclass(frozen=True)
class Drawing:
    """What decides drawn outputs besides the pair and its rules.

    Attributes:
        temperature: scores are divided by it before a token is drawn.
        top_k: tokens are drawn from so many likeliest; 0 for all.
        top_p: tokens are drawn from the likeliest that together have this probability.
        seed: of the random numbers; a text's own follow from it and from the text's line.
        num_return_sequences: outputs of each text; of several each object gets a list.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        check_counts(self)
        if not 0 < self.temperature < float("inf"):
            raise BildError(f"temperature must be above 0 and finite, got {self.temperature}")
        if self.top_k < 0:
            raise BildError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise BildError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.num_return_sequences < 1:
            raise BildError(
                f"num_return_sequences must be at least 1, got {self.num_return_sequences}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of `generate`."""
        own = asdict(self)
        del own["seed"]
        return {**own, "do_sample": True}
