"""Pairs of the published sizes without their checkpoints: random weights, planted outputs.

They answer one question: what speedup would recorded fallback and rollback rates give on this
machine? Every forward costs what the real model's costs, for the weights are dense and of full
size; only what comes out is arranged. Whatever is measured on them is "simulated acceptance".

`plan_outputs` runs BiLD itself over two scripts and so decides where the small model is unsure and
where it is wrong. `build_pair` makes the models that do so:

- Residual branches are scaled down, so that a decoder state is the embedding of the last token plus
  one vector that depends on the source: the output of the last cross-attention, left at its size.
- Each row of the head points along the state before which its token must be written, with the
  length that gives it the wanted probability. (The head is untied for that: the cost is the same.)
- The source is one token, repeated. It decides the first token of the output, and that one all
  others, each of which has its own successor.
- A wrong token is embedded as the right one, so that both models go on as if it were right.

Letters used for shapes: D model width, K outputs, M planted transitions, S source tokens,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from bild.config import BiLDConfig
from bild.engines import Decoder, Draft, Verdict
from bild.errors import BildError
from bild.generation.decoding import Stopping, decode
from bild.generation.stats import DecodeStats
from bild.policy import FallbackRule
from bild.tasks.registry import PublishedRow, Thresholds, get

# The shapes of google-t5/t5-* and google/mt5-*, which the published checkpoints were made from.
_T5 = {"vocab_size": 32128, "d_kv": 64, "feed_forward_proj": "relu"}
_MT5 = {"vocab_size": 250112, "d_kv": 64, "feed_forward_proj": "gated-gelu"}
SHAPES: dict[str, dict[str, Any]] = {
    "t5-large": {**_T5, "d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    "t5-small": {**_T5, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "mt5-large": {**_MT5, "d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "mt5-small": {**_MT5, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
}
PAIRS = ("t5-large/t5-small", "mt5-large/mt5-small")

PAD, EOS = 0, 1
FIRST_FREE_TOKEN = 3  # after padding, end of sequence and unknown

BRANCH = 0.02  # of a residual branch's own size
NOISE = 0.5  # standard deviation of the logits of tokens that are not planted
ATTEMPTS = 200  # sets of outputs drawn, before the rates count as out of reach
FIRST_MARGIN = 4.0  # of an output's first token over the first tokens of others, nats
MARGIN = 6.0  # logit of a sure token over the logsumexp of all others, nats: probability 0.998

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
        for draws.outputs in range(outputs, 0, -1):
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

    def verify(self, pending: Sequence[int], drafted: Sequence[int], first_row: int = 0) -> Verdict:
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


# ------------------------------------------------------------------------------ the models


@dataclass(frozen=True)
class PlantedOutput:
    """One source and what the pair makes of it.

    Attributes:
        source_token: the source is this token, repeated.
        tokens: the large model's output, end of sequence included, decoder start token excluded.
        stats: what BiLD does on the way, by plan.
    """

    source_token: int
    tokens: tuple[int, ...]
    stats: DecodeStats

    def source(self, length: int) -> Tensor:
        """Source tokens, (1, S)."""
        return torch.full((1, length), self.source_token)


@dataclass(frozen=True)
class PlantedPair:
    """Two models and the outputs planted in them; float32, in evaluation mode."""

    large: PreTrainedModel
    small: PreTrainedModel
    outputs: list[PlantedOutput]


def configs(pair: str) -> tuple[T5Config, T5Config]:
    """Configurations (large, small) of a pair of `PAIRS`.

    Raises:
        BildError: another pair; those known are listed.
    """
    if pair not in PAIRS:
        raise BildError(f"unknown pair {pair!r}; choose one of {', '.join(PAIRS)}")
    large, small = (
        (MT5Config if name.startswith("mt5") else T5Config)(
            **SHAPES[name], pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD
        )
        for name in pair.split("/")
    )
    return large, small


def build_pair(
    large: T5Config,
    small: T5Config,
    plans: Sequence[Plan],
    fallback_threshold: float,
    *,
    ends: bool = True,
    seed: int = 0,
) -> PlantedPair:
    """Make the models whose outputs go as planned.

    An unsure model gives its token half the fallback threshold as probability. Every other unsure
    token is the right one all the same, which matters to assisted generation alone: it sends that
    token to the large model, where BiLD drops it.

    Args:
        large, small: T5 or mT5 configurations with one vocabulary of V tokens, at least 256 wide:
            in narrower models the rows of the head are not far enough apart.
        plans: of `plan_outputs`.
        fallback_threshold: between 0 and 1; the one the outputs are decoded with.
        ends: end each output with the end of sequence; else only a length limit does.
        seed: of the weights and of the tokens' numbers.

    Raises:
        BildError: the vocabulary is too small for so many tokens.
    """
    script = _Script.write(plans, large.vocab_size, ends, Random(seed))
    models = {}
    for name, config in (("large", large), ("small", small)):
        models[name] = _random_model(config, seed)
        _plant(models[name], script, script.moves[name], fallback_threshold, seed)
    return PlantedPair(models["large"], models["small"], script.outputs)


@dataclass(frozen=True)
class _Move:
    """After `token` of output `output` the model writes `successor`."""

    output: int
    token: int
    successor: int
    sure: bool
    first: bool  # `token` is the decoder start token


@dataclass
class _Script:
    """Token numbers: outputs, what each model writes after which token, and which look alike."""

    outputs: list[PlantedOutput] = field(default_factory=list)
    moves: dict[str, list[_Move]] = field(default_factory=lambda: {"large": [], "small": []})
    alike: list[tuple[int, int]] = field(default_factory=list)  # (token, the one it looks like)

    @classmethod
    def write(cls, plans: Sequence[Plan], vocab_size: int, ends: bool, random: Random) -> _Script:
        """Number the tokens of all outputs; no two positions share one."""
        free = list(range(FIRST_FREE_TOKEN, vocab_size))
        random.shuffle(free)
        needed = sum(1 + len(p.kinds) + sum(k != "sure" for k in p.kinds) for p in plans)
        if needed > len(free):
            raise BildError(
                f"{len(plans)} planted outputs need {needed} tokens, but the vocabulary has only "
                f"{len(free)}; ask for fewer or shorter ones"
            )
        script = cls()
        unsure = 0
        before_end = []
        for number, plan in enumerate(plans):
            source = free.pop()
            tokens = [free.pop() for _ in plan.kinds]
            if ends:
                tokens[-1] = EOS
                before_end.append(([PAD, *tokens])[-2])
            for position, (kind, token) in enumerate(zip(plan.kinds, tokens, strict=True)):
                before = tokens[position - 1] if position else PAD
                drafted = token
                unsure += kind == "unsure"
                if kind == "wrong" or (kind == "unsure" and unsure % 2):
                    drafted = free.pop()
                    script.alike.append((drafted, token))
                first = position == 0
                script.moves["large"].append(_Move(number, before, token, True, first))
                script.moves["small"].append(
                    _Move(number, before, drafted, kind != "unsure", first)
                )
            script.outputs.append(PlantedOutput(source, tuple(tokens), plan.stats))
        # So that one row of the head fits the end of all outputs.
        script.alike[:0] = [(token, before_end[0]) for token in before_end[1:]]
        return script


def _random_model(config: T5Config, seed: int) -> PreTrainedModel:
    """A model as transformers initialises it, with its head untied and small residual branches."""
    kind = MT5ForConditionalGeneration if config.model_type == "mt5" else T5ForConditionalGeneration
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval().requires_grad_(False)
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.shared.weight), requires_grad=False)
    source_branch = model.decoder.block[-1].layer[1].EncDecAttention.o.weight
    for name, parameter in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")) and parameter is not source_branch:
            parameter.mul_(BRANCH)
    return model


@torch.no_grad()
def _plant(
    model: PreTrainedModel,
    script: _Script,
    moves: Sequence[_Move],
    fallback_threshold: float,
    seed: int,
) -> None:
    """Write the rows of the head, (V, D), and make tokens look alike."""
    config = model.config
    width, vocab_size = config.d_model, config.vocab_size
    # T5 scales the states before its head, mT5 and T5 1.1 do not.
    scale = width**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
    embedding, head = model.shared.weight, model.lm_head.weight
    for token, model_token in script.alike:
        embedding[token] = embedding[model_token]
    generator = torch.Generator().manual_seed(seed)
    head.normal_(0, NOISE / (scale * math.sqrt(width)), generator=generator)

    # What the source adds to each state; attention weights do not matter, its tokens being equal.
    attention = model.decoder.block[-1].layer[1].EncDecAttention
    sources = embedding[[o.source_token for o in script.outputs]]  # (K, D)
    from_source = attention.o(attention.v(model.encoder.final_layer_norm(sources)))  # (K, D)

    token = embedding[[m.token for m in moves]]  # (M, D)
    source = from_source[[m.output for m in moves]]  # (M, D)
    state = model.decoder.final_layer_norm(token + source)  # (M, D)
    others = math.log(vocab_size) + NOISE**2 / 2  # logsumexp of the tokens that are not planted
    p = fallback_threshold / 2
    unsure = math.log(p / (1 - p))
    logits = torch.tensor([others + (MARGIN if m.sure else unsure) for m in moves])  # (M,)
    first = torch.tensor([m.first for m in moves])
    # All outputs begin with the same token, so there the source's part has to decide.
    from_token = torch.where(first, logits - FIRST_MARGIN, logits)
    rows = _row(token, state, from_token / scale)
    rows += _row(source, state, torch.where(first, FIRST_MARGIN, 0.0) / scale)
    head[[m.successor for m in moves]] = rows


def _row(direction: Tensor, state: Tensor, logit: Tensor) -> Tensor:
    """Rows (M, D) along `direction` (M, D) whose product with `state` (M, D) is `logit` (M,)."""
    return direction * (logit / (direction * state).sum(-1)).unsqueeze(-1)
