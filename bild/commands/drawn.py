"""Flags of drawn outputs, which more than one command has."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace

from bild.config import BiLDConfig
from bild.drawing import Distribution
from bild.errors import BildError
from bild.flags import add_fields

SWITCH = "--do-sample"  # as transformers calls it


def add_drawing(
    parser: ArgumentParser, what: str, kind: type[Distribution], names: Sequence[str]
) -> None:
    """Give a parser the flags of drawn outputs, of which `SWITCH` asks for them.

    Args:
        parser: of the command.
        what: `SWITCH` says of itself.
        kind: holds what is read.
        names: its fields that have flags.
    """
    drawn = parser.add_argument_group("drawn outputs")
    drawn.add_argument(SWITCH, action="store_true", help=what)
    add_fields(drawn, kind, *names)
    add_fields(drawn, BiLDConfig, "sampling")


def for_drawing(bild: BiLDConfig, a: Namespace) -> BiLDConfig:
    """The rules of drawn drafts: rules of their own, which have no variants."""
    exact = a.sampling != "bild" and a.variant is None
    variant = "verified" if exact else bild.variant
    return replace(bild, sampling=a.sampling, variant=variant)


def refuse_drawing(a: Namespace, drawing: Distribution, names: Sequence[str]) -> None:
    """Refuse settings of drawn outputs where greedy ones are asked for.

    Args:
        a: the command line.
        drawing: what the command line says of it.
        names: fields of `drawing` that have flags.

    Raises:
        BildError: the first of them is named.
    """
    greedy = type(drawing)()
    given = [name for name in names if getattr(drawing, name) != getattr(greedy, name)]
    given += ["sampling"] if a.sampling != BiLDConfig.sampling else []
    if given:
        flag = given[0].replace("_", "-")
        raise BildError(f"--{flag} is for drawn outputs; give {SWITCH} too")
