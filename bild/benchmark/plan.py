"""What a planted pair is to do: outputs with recorded fallback and rollback rates.

BiLD itself runs over two scripts, which decide where the small model is unsure and where it is
wrong; `bild.benchmark.planted` makes the models that do so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft, Verdict
from bild.errors import BildError
from bild.generation.decoding import Stopping, decode
from bild.generation.stats import DecodeStats
from bild.policy import FallbackRule
from bild.tasks.registry import PublishedRow, Thresholds, get

PAD = 0
ATTEMPTS = 200  # sets of outputs drawn, before the rates count as out of reach

Kind = Literal["sure", "unsure", "wrong"]


def recorded_rates(task: str, mode: str, thresholds: Thresholds | None = None) -> PublishedRow:
    """The row of the first reproduction that holds a task's fallback and rollback rates.

    Args:
        task: a name of `bild.tasks.registry.TASKS`.
        mode: "unaligned" or "aligned".
        thresholds: of the run; None for the first one recorded.

    Raises:
        BildError: there is no such row; those there are are listed.
    """
    rows = [r for r in get(task).published if r.fallback_rate is not None and not r.note]
    for row in rows:
        if row.mode == mode and thresholds in (None, thresholds_of(row)):
            return row
    wanted = (
        mode if thresholds is None else f"{mode} {thresholds.fallback:g} {thresholds.rollback:g}"
    )
    known = dict.fromkeys(f"{r.mode} {r.fallback:g} {r.rollback:g}" for r in rows)
    raise BildError(
        f"no rates are recorded for {task} {wanted} (mode, fallback, rollback); "
        f"there are: {', '.join(known) or 'none'}"
    )


def thresholds_of(row: PublishedRow) -> Thresholds:
    """The thresholds a recorded run had."""
    assert row.fallback is not None
    assert row.rollback is not None
    return Thresholds(row.fallback, row.rollback)


# ------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class Plan:
    """One output: what the small model is at each position, and what BiLD then does."""

    kinds: tuple[Kind, ...]
    stats: DecodeStats


def plan_outputs(
    fallback_rate: float,
    rollback_rate: float,
    length: int,
    outputs: int,
    config: BiLDConfig,
    seed: int = 0,
) -> list[Plan]:
    """Decide where the small model is unsure and where it is wrong.

    The places are random, drawn until all outputs together have the wanted rates, to the nearest
    whole number of fallbacks and rollbacks.

    Args:
        fallback_rate, rollback_rate: per 100 generated tokens, as `DecodeStats` counts them.
        length: tokens of an output, end of sequence included.
        outputs: how many outputs to plan, K.
        config: the settings they are decoded with later.
        seed: of the draws.

    Raises:
        BildError: rates that no outputs of this length can have.
    """
    total = length * outputs
    fallbacks, rollbacks = round(fallback_rate * total / 100), round(rollback_rate * total / 100)
    for attempt in range(ATTEMPTS):
        draws = _Draws(
            fallbacks=fallbacks,
            rollbacks=rollbacks,
            length=length,
            outputs=outputs,
            window=config.num_small_iters,
            random=Random(f"{seed}, {attempt}"),
        )
        plans = []
        for done in range(outputs):
            draws.outputs = outputs - done
            small = _ScriptedSmall(draws)
            _, stats = decode(_ScriptedLarge(), small, [PAD], config, Stopping(1 + length))
            kinds = tuple(small.kinds.get(position, "sure") for position in range(length))
            plans.append(Plan(kinds, stats))
        if draws.fallbacks == draws.rollbacks == 0:
            return plans
    raise BildError(
        f"{outputs} outputs of {length} tokens cannot have {fallback_rate:g} fallbacks and "
        f"{rollback_rate:g} rollbacks per 100 tokens; ask for more or longer ones"
    )


@dataclass
class _Draws:
    """What is still to be drawn, in this output and those after it."""

    fallbacks: int
    rollbacks: int
    length: int
    outputs: int  # still to be drawn, this one included
    window: float
    random: Random

    def kind(self, position: int) -> Kind:
        """What the small model is at a position it comes to for the first time."""
        if position == self.length - 1:
            return "sure"  # of the end, for which all outputs share a row of the head
        # Of the places left the small model comes to some three in four, the large one to the rest.
        later = self.outputs - 1
        places = 0.75 * (later * self.length + self.length - position)
        if self.random.random() * places < self.fallbacks:
            return "unsure"
        # The large model must still come to see a wrong token: a draft may end the output unseen.
        last = max(0, self.length - 1 - self.window)
        places = 0.75 * (later * last + last - position)
        if position < last and self.random.random() * places < self.rollbacks:
            return "wrong"
        return "sure"


_RIGHT, _WRONG = 2, 3


class _Scripted(Decoder):
    """A model without weights: `draft` or `verify` say what it does."""

    vocab_size = 4

    def __init__(self) -> None:
        self.begin(None, None)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any) -> None:
        pass

    def begin(self, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        self.length = self.forwards = self.tokens_fed = 0

    def feed(self, tokens: Sequence[int]) -> Tensor:
        self.length += len(tokens)
        self.forwards += 1
        self.tokens_fed += len(tokens)
        return torch.empty(0)

    def rollback_to(self, length: int) -> None:
        self.length = min(self.length, length)


class _ScriptedLarge(_Scripted):
    """Always sure, and right by definition."""

    name = "large"

    def verify(
        self,
        pending: Sequence[int],
        drafted: Sequence[int],
        first_row: int = 0,
        needs: Collection[str] = (),
    ) -> Verdict:
        self.feed(pending)
        rows = len(pending) - first_row
        distances = [0.0 if token == _RIGHT else math.inf for token in drafted]
        return Verdict([_RIGHT] * rows, [1.0] * rows, distances)


class _ScriptedSmall(_Scripted):
    """Unsure or wrong where the draws say so; they are told what came of it."""

    name = "small"

    def __init__(self, draws: _Draws) -> None:
        super().__init__()
        self.draws = draws
        self.kinds: dict[int, Kind] = {}
        self.wrong = False  # the draft holds a wrong token

    def draft(
        self, pending: Sequence[int], limit: int, rule: FallbackRule, eos_token_ids: Any = ()
    ) -> Draft:
        tokens: list[int] = []
        while len(tokens) < limit:
            self.feed(pending)
            position = self.length - 1  # of the next token in the output, the prompt being one
            if position not in self.kinds:
                kind = self.draws.kind(position)
                self.kinds[position] = "sure" if kind == "wrong" and self.wrong else kind
            kind = self.kinds[position]
            if kind == "unsure":
                self.draws.fallbacks -= 1
                return Draft(tokens, [1.0] * len(tokens) + [0.0], unsure=_RIGHT)
            self.wrong |= kind == "wrong"
            tokens.append(_WRONG if kind == "wrong" else _RIGHT)
            pending = tokens[-1:]
        return Draft(tokens, [1.0] * len(tokens), unsure=None)

    def rollback_to(self, length: int) -> None:
        super().rollback_to(length)
        self.draws.rollbacks -= 1
        self.wrong = False
