"""What the loop makes of a rule's answer, and what it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bild.engines import Draft, Verdict
from bild.errors import BildError
from bild.policy import DEAR_MEASURES, FREE_MEASURES, AcceptanceRule

MEASURES = FREE_MEASURES | DEAR_MEASURES  # what is known of a draft when a rule judges it


def judged(
    rule: AcceptanceRule, verdict: Verdict, drafted: Sequence[int], draft: Draft, spent: float
) -> tuple[int | None, int, float]:
    """Where the draft is cut, if it is; how much of it stands; what the rule has spent by then."""
    known = verdict.window(drafted, draft.probabilities[: len(drafted)], spent)
    cut = rule.first_cut(known)
    kept = len(drafted) if cut is None else cut
    return cut, kept, spent + rule.spends(known, kept)


def count_draft(counts: Counter[str], draft: Draft, ends: bool, limit: int) -> None:
    counts["drafted_tokens"] += len(draft.tokens)
    counts["fallbacks"] += draft.unsure is not None
    counts["full_windows"] += draft.unsure is None and not ends and len(draft.tokens) == limit


def count_verdict(counts: Counter[str], window: int, cut: int | None) -> None:
    kept = window if cut is None else cut
    counts["verifications"] += window > 0
    counts["verified_tokens"] += kept
    counts["rollbacks"] += cut is not None
    counts["rolled_back_tokens"] += window - kept


def known_rule(rule: AcceptanceRule) -> AcceptanceRule:
    """The rule, whose every need the loop must be able to meet."""
    unknown = sorted(rule.needs - MEASURES)
    if unknown:
        raise BildError(
            f"{type(rule).__name__} needs {unknown[0]!r} of a draft, which is not measured; "
            f"rules can read {', '.join(sorted(MEASURES))}"
        )
    return rule
