"""What becomes of a draft that was sampled: pure functions over one verified window.

Each is a value of `SAMPLING`, by the name that `BiLDConfig(sampling=...)` gives. It is told both
models' distributions, what was drafted and some uniform numbers, and says how much of the draft
stands and by which weights the next token is to be drawn. The chance is in its arguments, so that
it can be tested by enumeration.

"speculative" and "block" are exact: whatever the small model is, outputs are distributed as the
large model's own samples, as long as where a draft ends depends only on the tokens written before
(`bild.generation.sampling` sees to that).

Letters used for shapes: T drafted tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bild.config import BiLDConfig
from bild.errors import BildError
from bild.fallback import Adaptive
from bild.policy import AcceptanceRule, DistanceRule, Window


class Standing(NamedTuple):
    """How much of a draft stands, and what comes after it.

    Attributes:
        kept: drafted tokens that stand.
        weights: (V,), by which the token after them is drawn, not normalised; None where all stand
            and nothing scored the token after them.
    """

    kept: int
    weights: Tensor | None


# Arguments: the large model's distributions (T or T + 1, V), the small model's (T, V), the drafted
# tokens, and T uniform numbers in [0, 1).
SamplingRule = Callable[[Tensor, Tensor, Sequence[int], Sequence[float]], Standing]


def speculative(p: Tensor, q: Tensor, drafted: Sequence[int], chances: Sequence[float]) -> Standing:
    """Each token stands with probability min(1, p / q); in the place of the first that does not
    comes one of norm(max(p - q, 0)).

    Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", ICML
    2023, Algorithm 1; Chen et al., "Accelerating Large Language Model Decoding with Speculative
    Sampling", 2023, Algorithm 2.
    """
    for i, (large, small) in enumerate(_of_drafted(p, q, drafted)):
        if chances[i] * small >= large:
            return Standing(i, _excess(p[i], q[i]))
    return Standing(len(drafted), _after(p, len(drafted)))


def block(p: Tensor, q: Tensor, drafted: Sequence[int], chances: Sequence[float]) -> Standing:
    """The longest prefix stands that its own coin lets stand; coins look at the whole prefix.

    A likely continuation may save a token that `speculative` would have refused: on average at
    least as many stand.

    Source: Sun et al., "Block Verification Accelerates Speculative Decoding", ICLR 2025 (arXiv
    2403.10444), Algorithm 2.
    """
    weight, kept, weights = 1.0, 0, [1.0]
    ratios = [large / small for large, small in _of_drafted(p, q, drafted)]
    for i, ratio in enumerate(ratios):
        weight = min(1.0, weight * ratio)
        weights.append(weight)
        stands = weight  # of the last token; of the others as follows
        if i + 1 < len(drafted):
            excess = float((weight * p[i + 1] - q[i + 1]).clamp(min=0).sum())
            whole = excess + 1 - weight
            stands = excess / whole if whole > 0 else 1.0
        if chances[i] < stands:
            kept = i + 1
    if kept == len(drafted):
        return Standing(kept, _after(p, kept))
    return Standing(kept, _excess(p[kept], q[kept], weights[kept]))


@dataclass(frozen=True)
class ByDistance:
    """A token stands if the large model finds it likely enough; lossy.

    As BiLD's greedy rule, on the distributions that are drawn from: the first token is cut that is
    over the rollback threshold and not the large model's likeliest one; in its place comes a sample
    of the large model.

    Source: the rule is that of Kim et al. 2023, Eq. 2; what it judges here is this project's.

    Attributes:
        rule: of greedy decoding.
    """

    rule: AcceptanceRule

    def __call__(
        self, p: Tensor, q: Tensor, drafted: Sequence[int], chances: Sequence[float]
    ) -> Standing:
        of_drafted = _of_drafted(p, q, drafted)
        best = p[: len(drafted)].max(-1)
        known = Window(
            *(drafted, best.indices.tolist(), [_distance(large) for large, _ in of_drafted]),
            *([_distance(large) for large in best.values.tolist()], [q for _, q in of_drafted]),
        )
        cut = self.rule.first_cut(known)
        kept = len(drafted) if cut is None else cut
        return Standing(kept, _after(p, kept))


SAMPLING: dict[str, Callable[[AcceptanceRule], SamplingRule]] = {
    "speculative": lambda _: speculative,
    "block": lambda _: block,
    "bild": ByDistance,
}


def sampling_rule(config: BiLDConfig) -> SamplingRule:
    """What becomes of sampled drafts by a configuration.

    Raises:
        BildError: settings that say something of greedy drafts alone, by name and value.
    """
    if config.sampling != "bild":
        for name, plain in (("variant", "verified"), ("acceptance", None)):
            if getattr(config, name) != plain:
                raise BildError(
                    f"{name}={getattr(config, name)!r} does not judge drafts with do_sample=True; "
                    f"use sampling='bild', or {name}={plain!r}, got sampling={config.sampling!r}"
                )
    elif not isinstance(config.acceptance_rule, DistanceRule):
        raise BildError(
            f"acceptance={config.acceptance!r} judges greedy drafts alone; with do_sample=True "
            "give a rollback_threshold, or sampling='speculative' or 'block'"
        )
    if config.lookahead != 0:
        raise BildError(
            f"lookahead={config.lookahead!r} guesses what is likeliest, which sampling need not "
            "draw; with do_sample=True use lookahead=0"
        )
    if config.copying != "no":
        raise BildError(
            f"copying={config.copying!r} drafts without probabilities; with do_sample=True use "
            "copying='no'"
        )
    if isinstance(config.fallback_rule, Adaptive):
        raise BildError(
            f"drafting={config.drafting!r} goes by the clock, and no seed would give the same "
            "again; with do_sample=True use another rule"
        )
    return SAMPLING[config.sampling](config.acceptance_rule)


def loop_rule(config: BiLDConfig) -> AcceptanceRule:
    """The rule that says who writes next and whether the end is checked."""
    rule = config.acceptance_rule
    return rule if config.sampling == "bild" else replace(rule, after_cut="small", checks_end=True)


def _of_drafted(p: Tensor, q: Tensor, drafted: Sequence[int]) -> list[tuple[float, float]]:
    """What both models think of each drafted token."""
    count = len(drafted)
    if not count:
        return []
    places = torch.tensor(drafted, dtype=torch.long, device=p.device)[:, None]
    both = (p[:count].gather(1, places)[:, 0], q.gather(1, places)[:, 0])
    return list(zip(*(values.tolist() for values in both), strict=True))


def _excess(p: Tensor, q: Tensor, weight: float = 1.0) -> Tensor:
    """max(weight p - q, 0), (V,)."""
    excess = (weight * p - q).clamp(min=0)
    # Equal distributions leave nothing to draw from; only by rounding is a draft of them cut.
    return excess if float(excess.sum()) > 0 else p


def _after(p: Tensor, kept: int) -> Tensor | None:
    return p[kept] if kept < len(p) else None


def _distance(probability: float) -> float:
    return -math.log(probability) if probability > 0 else math.inf
