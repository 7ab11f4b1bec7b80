"""What forwards take on this machine, and what that says of guesses."""

from __future__ import annotations

from dataclasses import dataclass, field

REMEMBERED = 0.98  # of what was measured before, with every further point
UNKNOWN_CHANCE = 0.5  # that a guess must have at least, while prices are not known
WINDOW = 2.0  # drafted tokens that usually stand between two hand-overs
LONGEST_PRICE = 3  # times the usual one: what interrupts a process takes longer, and is no price


@dataclass
class Sums:
    """What a line through measured points is told from, the latest counting most.

    Attributes:
        weight, x, y, xx, xy: of all points, of their coordinates and of the products of these.
    """

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        """One more point."""
        self.weight = REMEMBERED * self.weight + 1
        self.x = REMEMBERED * self.x + x
        self.y = REMEMBERED * self.y + y
        self.xx = REMEMBERED * self.xx + x * x
        self.xy = REMEMBERED * self.xy + x * y

    def line(self) -> tuple[float, float]:
        """(height at 0, slope) of the line of least squares; neither is negative."""
        spread = self.weight * self.xx - self.x**2
        slope = 0.0
        if spread > 1e-9 * self.weight * self.xx:
            slope = max(0.0, (self.weight * self.xy - self.x * self.y) / spread)
        height = (self.y - slope * self.x) / self.weight
        return (height, slope) if height > 0 else (self.y / self.weight, 0.0)


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
    _sums: Sums = field(default_factory=Sums, repr=False)

    def drafted(self, seconds: float, forwards: int) -> None:
        """Small forwards were made in so many seconds."""
        if forwards:
            each = seconds / forwards
            self.small = each if not self.small else 0.9 * self.small + 0.1 * each

    def verified(self, seconds: float, width: int) -> None:
        """A large forward of `width` tokens was made in so many seconds."""
        self.seen += 1
        usual = self.large + self.token * (width - 1)
        self._sums.add(width - 1, min(seconds, LONGEST_PRICE * usual) if usual else seconds)
        self.large, self.token = self._sums.line()

    def worth_it(self, chance: float) -> bool:
        """Whether to go on behind a guess that holds, with all before it, with this chance."""
        return chance > self.least_chance()

    def least_chance(self) -> float:
        """The chance above which it pays to go on behind a guess; 1 where it never does.

        A guess saves the fixed part of a large forward if it holds; if not, what a window costs.
        """
        if self.seen < 4 or not self.large or not self.small:
            return UNKNOWN_CHANCE
        saved = self.large - self.token
        lost = (WINDOW + 1) * (self.small + self.token)
        return lost / (saved + lost) if saved > 0 else 1.0


@dataclass
class Line:
    """What forwards of one model take, by the tokens of all rows that are in them.

    Attributes:
        first: seconds of a forward of one token.
        further: of each further token in it.
    """

    first: float = 0.0
    further: float = 0.0
    _sums: Sums = field(default_factory=Sums, repr=False)

    def add(self, seconds: float, forwards: int, tokens: int) -> None:
        """So many forwards, of so many tokens in all, were made in so many seconds."""
        further = tokens / forwards - 1
        usual = self.first + self.further * further
        each = seconds / forwards
        for _ in range(min(forwards, 4)):
            self._sums.add(further, min(each, LONGEST_PRICE * usual) if usual else each)
        self.first, self.further = self._sums.line()

    def step(self, rows: int, *, shared: bool) -> float:
        """Seconds in which each of so many rows is fed one token.

        Args:
            rows: how many.
            shared: whether one forward serves all of them; else each has its own.
        """
        return self.first + self.further * (rows - 1) if shared else rows * self.first
