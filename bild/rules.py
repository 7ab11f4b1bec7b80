"""The rules for the two decisions of BiLD's loop by name, and as texts.

`--rule typical:eps=0.3,delta=0.09` and `BiLDConfig(acceptance="typical:eps=0.3,delta=0.09")` name
an acceptance rule of `ACCEPTANCE`; `--drafting` and `BiLDConfig(drafting=...)` a fallback rule of
`FALLBACK`. A rule of one's own is one more entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeVar

from bild.acceptance import Cascade, Ensemble, Exact, Lenient, Regret, TopK, Typical
from bild.errors import BildError
from bild.fallback import Adaptive, Entropy, Margin, Product
from bild.policy import AcceptanceRule, DistanceRule, FallbackRule, MaxProbability

ACCEPTANCE: dict[str, Callable[..., AcceptanceRule]] = {
    "exact": Exact,
    "bild": DistanceRule,
    "topk": TopK,
    "typical": Typical,
    "lenient": Lenient,
    "regret": Regret,
    "ensemble": Ensemble,
    "cascade": Cascade,
}
FALLBACK: dict[str, Callable[..., FallbackRule]] = {
    "max": MaxProbability,
    "entropy": Entropy,
    "margin": Margin,
    "product": Product,
    "adaptive": Adaptive,
}

R = TypeVar("R")


@lru_cache  # it is asked for with every output
def acceptance_rule(text: str) -> AcceptanceRule:
    """The acceptance rule of a text as "lenient" or "typical:eps=0.3,delta=0.09".

    Raises:
        BildError: a name that is none of `ACCEPTANCE`, or a setting that is not that rule's.
    """
    return _parse(text, ACCEPTANCE, "acceptance")


@lru_cache
def fallback_rule(text: str) -> FallbackRule:
    """The fallback rule of a text as "entropy:limit=1.5"; errors as of `acceptance_rule`."""
    return _parse(text, FALLBACK, "fallback")


def rule_text(rule: AcceptanceRule | FallbackRule) -> str:
    """The text that stands for a rule, all its settings included; the inverse of the parsers.

    Raises:
        BildError: a rule that no text stands for.
    """
    kinds: Mapping[str, Any] = ACCEPTANCE if isinstance(rule, AcceptanceRule) else FALLBACK
    name = next((n for n, kind in kinds.items() if kind is type(rule)), None)
    if name is not None:
        settings = ",".join(f"{k}={_number(getattr(rule, k))}" for k in _settings(type(rule)))
        text = f"{name}:{settings}" if settings else name
        if _parse(text, kinds, "") == rule:
            return text
    raise BildError(f"{rule!r} has no name; rules with one: {', '.join(kinds)}")


def _parse(text: str, kinds: Mapping[str, Callable[..., R]], what: str) -> R:
    name, _, rest = text.partition(":")
    if name not in kinds:
        raise BildError(f"{what} rule must be one of {', '.join(kinds)}, got {name!r}")
    known = _settings(kinds[name])
    settings: dict[str, float] = {}
    for part in rest.split(",") if rest else ():
        key, _, value = part.partition("=")
        if key not in known or key in settings:
            raise BildError(
                f"{what} rule {name} has the settings {', '.join(known) or '(none)'}, each given "
                f"once as name=number, got {part!r}"
            )
        try:
            settings[key] = float(value)
        except ValueError:
            raise BildError(f"{what} rule {name}: {key} must be a number, got {value!r}") from None
    return kinds[name](**settings)


def _settings(kind: Any) -> tuple[str, ...]:
    """The settings of a rule that a text gives: its numbers, in their order."""
    return tuple(f.name for f in fields(kind) if f.type in ("float", float))


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
