"""Which two runs may be set side by side."""

from __future__ import annotations

from typing import Any

from bild.errors import BildError
from bild.evaluation.record import RunRecord


def comparable(a: RunRecord, b: RunRecord) -> None:
    """Refuse two runs whose scores or speeds must not be set side by side.

    Raises:
        BildError: they differ in data, large model, tokenizer, metric, limits, engine, precision,
            machine, threads, versions or commit; both values are named.
    """
    for what, left, right in _compared(a, b):
        if left != right:
            raise BildError(f"these runs cannot be compared: their {what} differ, {left} / {right}")


def _compared(a: RunRecord, b: RunRecord) -> list[tuple[str, Any, Any]]:
    """(name, value of a, value of b) of all that must be equal."""
    runs = (a, b)
    values: dict[str, list[Any]] = {
        "data": [r.data.sha256 for r in runs],
        "large models": [r.models.large.fingerprint for r in runs],
        "tokenizers": [r.models.tokenizer and r.models.tokenizer.fingerprint for r in runs],
        "metrics": [r.large.quality[r.metric].signature for r in runs],
        "output limits": [r.config.max_new_tokens for r in runs],
        "source limits": [r.config.max_source_tokens for r in runs],
        "engines": [r.large.built for r in runs],
        "precisions": [r.large.id.precision for r in runs],
        "devices": [r.env.device for r in runs],
        "processors": [r.env.processor for r in runs],
        "graphics cards": [r.env.gpu for r in runs],
        "threads": [r.env.threads for r in runs],
        "wait policies": [r.env.wait_policy for r in runs],
        "Python versions": [r.env.python for r in runs],
        "processes": [len(r.processes) for r in runs],
        "passes": [r.timing.runs for r in runs],
        "commits": [r.env.commit for r in runs],
        "sources of the package": [r.env.code for r in runs],
    }
    for name in dict.fromkeys([*a.env.versions, *b.env.versions]):
        values[f"{name} versions"] = [r.env.versions.get(name) for r in runs]
    return [(name, left, right) for name, (left, right) in values.items()]
