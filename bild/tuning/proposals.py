"""Which thresholds to try next.

Nothing of this is kept in a file that could be torn. The sampler is seeded anew for each proposal,
so the same answers lead to the same next question, and what was decoded is on disk: a search that
was stopped begins again and goes the same way, without decoding, to where it was.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from bild.config import SEARCH_STEPS, SearchConfig
from bild.errors import BildError
from bild.tasks.registry import Thresholds

if TYPE_CHECKING:
    import optuna

STARTUP = 4  # proposals before the sampler learns from what came of them
AXES = ("fallback", "rollback")


def candidates(config: SearchConfig, method: str) -> list[Thresholds]:
    """All thresholds that a method may choose from: "grid" decodes each, "optuna" some."""
    rollbacks = config.axis("rollback", method)
    return [Thresholds(f, r) for f in config.axis("fallback", method) for r in rollbacks]


def require_optuna() -> None:
    """Refuse to go on without Optuna, and keep it from talking.

    Raises:
        BildError: Optuna or what it needs is not installed.
    """
    try:
        import optuna
        import scipy  # noqa: F401  (of which Optuna's sampler makes use)
    except ModuleNotFoundError as error:
        raise BildError(
            f"the search needs {error.name}: pip install -r requirements.txt, or use --method grid"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def space(config: SearchConfig) -> dict[str, optuna.distributions.BaseDistribution]:
    """All thresholds that Optuna may propose, in its words."""
    import optuna

    axes = {name: config.axis(name, "optuna") for name in AXES}
    return {
        name: optuna.distributions.FloatDistribution(
            values[0], values[-1], step=SEARCH_STEPS["optuna"][name]
        )
        for name, values in axes.items()
    }


class Proposals:
    """Thresholds that Optuna proposes.

    Its Gaussian processes model speedup and headroom over both thresholds; they learn from
    thresholds that were given up too, by the estimates of that time. What they propose is new at
    first. Later, for each known proposal, a neighbour of the best thresholds is tried, until those
    have been compared with all their neighbours.

    Args:
        config: where to look.
        first: thresholds to begin with, where they are in the space.
        seed: of the proposals.

    Raises:
        BildError: Optuna or what it needs is not installed.
    """

    def __init__(
        self, config: SearchConfig, first: tuple[Thresholds, ...] = (), seed: int = 0
    ) -> None:
        require_optuna()
        import optuna

        self._axes = {name: config.axis(name, "optuna") for name in AXES}
        self._space = space(config)
        self._sampler = optuna.samplers.GPSampler
        self._study = optuna.create_study(direction="maximize")
        self._waiting = [t for t in dict.fromkeys(first) if self._is_inside(t)]
        self._seed, self._asked, self._was_known = seed, 0, False
        self._trial: optuna.trial.Trial | None = None

    def learn(self, trials: Iterable[optuna.trial.FrozenTrial]) -> None:
        """Take the trials of a shared study into account, those too that others are at."""
        for trial in trials:
            self._study.add_trial(trial)
            self._asked += 1

    def next(self, tried: Container[Thresholds], best: Thresholds | None) -> Thresholds | None:
        """The next thresholds, perhaps known ones; None when there is nothing left to try.

        Args:
            tried: all that were tried so far.
            best: the best of them, or those nearest to being good enough.
        """
        if not self._waiting and self._was_known:
            near = self._untried_neighbour(tried, best)
            if near is None:
                return None
            self._waiting.append(near)
        if self._waiting:
            self._study.enqueue_trial(asdict(self._waiting.pop(0)))
        self._study.sampler = self._sampler(seed=self._seed + self._asked, n_startup_trials=STARTUP)
        self._trial = self._study.ask(self._space)
        self._asked += 1
        found = Thresholds(*(round(self._trial.params[name], 10) for name in AXES))
        self._was_known = found in tried
        return found

    def tell(self, speedup: float, headroom: float) -> None:
        """What came of the thresholds proposed last; `headroom` below 0: they lose too much."""
        assert self._trial is not None
        self._trial.set_constraint("headroom", -headroom)
        self._study.tell(self._trial, speedup)

    def _is_inside(self, thresholds: Thresholds) -> bool:
        return all(getattr(thresholds, name) in self._axes[name] for name in AXES)

    def _untried_neighbour(
        self, tried: Container[Thresholds], best: Thresholds | None
    ) -> Thresholds | None:
        """Thresholds one step from the best ones; the fastest first."""
        if best is None:
            return None
        steps = []
        for name, values in self._axes.items():
            at = values.index(getattr(best, name))
            steps.append(values[max(0, at - 1) : at + 2])
        near = (Thresholds(f, r) for f in steps[0] for r in reversed(steps[1]))
        return next((t for t in near if t not in tried), None)
