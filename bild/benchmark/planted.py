"""Pairs of the published sizes without their checkpoints: random weights, planted outputs.

They answer one question: what speedup would recorded fallback and rollback rates give on this
machine? Every forward costs what the real model's costs, for the weights are dense and of full
size; only what comes out is arranged. Whatever is measured on them is "simulated acceptance".

`bild.benchmark.plan` decides where the small model is unsure and where it is wrong. `build_pair`
makes the models that do so:

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
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from bild.benchmark.plan import PAD, Plan
from bild.errors import BildError
from bild.generation.stats import DecodeStats

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

EOS = 1
FIRST_FREE_TOKEN = 3  # after padding, end of sequence and unknown

BRANCH = 0.02  # of a residual branch's own size
NOISE = 0.5  # standard deviation of the logits of tokens that are not planted
FIRST_MARGIN = 4.0  # of an output's first token over the first tokens of others, nats
MARGIN = 6.0  # logit of a sure token over the logsumexp of all others, nats: probability 0.998


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
    guess_share: float = 0.5,
    seed: int = 0,
) -> PlantedPair:
    """Make the models whose outputs go as planned.

    An unsure model gives its token half the fallback threshold as probability. A share of these
    tokens is right all the same, which matters to assisted generation and to guesses: they send
    that token to the large model, where plain BiLD drops it.

    Args:
        large, small: T5 or mT5 configurations with one vocabulary of V tokens, at least 256 wide:
            in narrower models the rows of the head are not far enough apart.
        plans: of `plan_outputs`.
        fallback_threshold: between 0 and 1; the one the outputs are decoded with.
        guess_share: of the unsure tokens that are right, 0 to 1.
        ends: end each output with the end of sequence; else only a length limit does.
        seed: of the weights and of the tokens' numbers.

    Raises:
        BildError: the vocabulary is too small for so many tokens.
    """
    script = _Script.write(plans, large.vocab_size, ends, guess_share, Random(seed))
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
    def write(
        cls,
        plans: Sequence[Plan],
        vocab_size: int,
        ends: bool,
        guess_share: float,
        random: Random,
    ) -> _Script:
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
                right = kind == "sure"
                if kind == "unsure":
                    right = int((unsure + 1) * guess_share) > int(unsure * guess_share)
                    unsure += 1
                if not right:
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
