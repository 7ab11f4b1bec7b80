"""What requests say of drawn outputs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bild.config import BiLDConfig
from bild.errors import BildError
from bild.fallback import Adaptive
from bild.generation.sequences import stream_of
from bild.outputs.drawing import Drawing

BESIDE = ("top_k", "top_p", "seed")  # what goes with a temperature


def read_drawing(settings: Mapping[str, Any]) -> Drawing | None:
    """How an output is drawn; None for a greedy one.

    Args:
        settings: of a request, by name; None is not given.

    Raises:
        BildError: settings that do not go together.
    """
    given = {name: settings[name] for name in BESIDE if settings[name] is not None}
    if settings["temperature"] is None:
        if given:
            raise BildError(f"{next(iter(given))} is for drawn outputs; give a temperature too")
        return None
    if settings["rollback"] is not None:
        raise BildError("rollback judges greedy drafts alone; leave it out with a temperature")
    seed = secrets.randbelow(2**32)
    return Drawing(settings["temperature"], **{"seed": seed, **given})


def for_drawing(bild: BiLDConfig) -> BiLDConfig:
    """The same way of drafting, where drawn drafts are judged exactly."""
    goes_by_the_clock = isinstance(bild.fallback_rule, Adaptive)
    return replace(
        bild,
        variant="verified",
        acceptance=None,
        lookahead=0,
        copying="no",
        sampling="speculative",
        drafting=None if goes_by_the_clock else bild.drafting,
    )


def options(max_new_tokens: int, drawing: Drawing | None, place: int) -> dict[str, Any]:
    """Keywords of `generate` for a text, the so many-th of its request."""
    plain = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": True}
    plain["max_new_tokens"] = max_new_tokens
    if drawing is None:
        return plain
    return {**plain, **drawing.settings, "generator": stream_of(drawing.seed, place)}
