"""The rules that `native/rules.h` knows, by their numbers there.

A class made of one of these may decide otherwise, and is left to Python.
"""

from __future__ import annotations

from bild.acceptance import Cascade, Ensemble, Exact, Lenient, Regret, TopK, Typical
from bild.engines.t5_structs import CAcceptance, CFallback
from bild.fallback import Entropy, Margin, Product
from bild.policy import AcceptanceRule, DistanceRule, FallbackRule, MaxProbability

# Each with the names of its settings, in their order there.
FALLBACKS: dict[type[FallbackRule], tuple[int, str]] = {
    MaxProbability: (0, "threshold"),
    Product: (1, "least"),
    Margin: (2, "least"),
    Entropy: (3, "limit"),
}
ACCEPTANCES: dict[type[AcceptanceRule], tuple[int, tuple[str, ...]]] = {
    Exact: (0, ()),
    DistanceRule: (1, ("threshold",)),
    TopK: (2, ("k", "tolerance")),
    Typical: (3, ("eps", "delta")),
    Lenient: (4, ("share",)),
    Regret: (5, ("budget",)),
    Ensemble: (6, ("weight",)),
    Cascade: (7, ("alpha",)),
}


def native_fallback(rule: FallbackRule) -> CFallback | None:
    """The rule for the library; None where it does not know it."""
    if type(rule) not in FALLBACKS:
        return None
    kind, setting = FALLBACKS[type(rule)]
    return CFallback(kind, getattr(rule, setting))


def native_acceptance(rule: AcceptanceRule) -> CAcceptance | None:
    """The rule for the library; None where it does not know it."""
    if type(rule) not in ACCEPTANCES:
        return None
    kind, names = ACCEPTANCES[type(rule)]
    first_far_only = isinstance(rule, DistanceRule) and rule.first_far_only
    return CAcceptance(kind, first_far_only, *(getattr(rule, name) for name in names))
