"""What forwards take on this machine, and what that says of guesses."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 2.0  # drafted tokens that usually stand between two hand-overs


@dataclass
class Prices:
    """What forwards take on this machine, learned while they run; in seconds.

    Attributes:
        small: a small forward.
        large: a large forward of one token.
        token: each further token of a large forward.
        seen: large forwards that were timed.
    """

    small: float = 0.0
    large: float = 0.0
    token: float = 0.0
    seen: int = 0

    def drafted(self, seconds: float, forwards: int) -> None:
        """Small forwards were made in so many seconds."""
        if forwards:
            each = seconds / forwards
            self.small = each if not self.small else 0.9 * self.small + 0.1 * each

    def verified(self, seconds: float, width: int) -> None:
        """A large forward of `width` tokens was made in so many seconds."""
        self.seen += 1
        if width == 1:
            self.large = seconds if not self.large else 0.9 * self.large + 0.1 * seconds
        elif self.large:
            each = max(0.0, seconds - self.large) / (width - 1)
            self.token = 0.9 * self.token + 0.1 * each if self.token else each

    def worth_it(self, chance: float) -> bool:
        """Whether to go on behind a guess that holds, with all before it, with this chance.

        It saves the fixed part of a large forward if it holds; if not, what a window costs.
        """
        if self.seen < 4 or not self.large or not self.small:
            return chance >= 0.5
        saved = self.large - self.token
        lost = (WINDOW + 1) * (self.small + self.token)
        return chance * saved > (1 - chance) * lost
