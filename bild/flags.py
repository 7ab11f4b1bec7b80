"""Flags from dataclasses: a field's type, choices, default and documentation, each spelled once.

A field `max_new_tokens: int | None = None` becomes `--max-new-tokens N`; its help is what the
class's docstring says of it under "Attributes:".
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bild.errors import BildError

METAVARS = {int: "N", float: "X", str: None}
ENTRY = re.compile(r"^    (\w[\w, ]*): ", re.MULTILINE)


def add_fields(
    parser: argparse._ActionsContainer,
    config: type,
    *names: str,
    **other: dict[str, Any],
) -> None:
    """Give a parser a flag for each of these fields of a dataclass; `read_fields` reads them.

    Args:
        parser: a parser or a group of one.
        config: the dataclass.
        names: of fields.
        other: of a field, arguments of `add_argument` that differ from those of its type;
            `flag`, another name of the flag.
    """
    hints, said = get_type_hints(config), documented(config)
    defaults = {f.name: f.default for f in fields(config)}
    for name in names:
        given = dict(other.get(name, {}))
        flag = given.pop("flag", "--" + name.replace("_", "-"))
        known: dict[str, Any] = {"dest": name, "help": said[name].replace("%", "%%")}
        if defaults[name] is not MISSING:
            known["default"] = defaults[name]
        parser.add_argument(flag, **{**known, **_of_type(hints[name]), **given})


def read_fields(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What the flags of `add_fields` were given, by the fields' names."""
    values = {name: getattr(arguments, name) for name in names}
    return {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}


@cache
def documented(config: type) -> dict[str, str]:
    """What a class's docstring says of each attribute, in one line; names may share an entry."""
    text = inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")[2]
    text = re.split(r"\n\n(?=\S)", text)[0]  # the next part of the docstring
    parts = ENTRY.split(f"{text}\n")[1:]
    entries = zip(parts[::2], parts[1::2], strict=True)
    return {name: " ".join(said.split()).rstrip(".") for names, said in entries
            for name in names.split(", ")}  # fmt: skip


def _of_type(hint: Any) -> dict[str, Any]:
    """The arguments of `add_argument` for a field of this type."""
    if get_origin(hint) in (Union, UnionType):
        hint, *words = (part for part in get_args(hint) if part is not NoneType)
        if words:
            return {"type": _or_word(hint, get_args(words[0])), "metavar": METAVARS[hint]}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        kind, *more = get_args(hint)
        several = "+" if more == [...] else 1 + len(more)
        return {"type": kind, "nargs": several, "metavar": METAVARS[kind]}
    return {"type": hint} if hint is str else {"type": hint, "metavar": METAVARS[hint]}


def _or_word(kind: type, words: tuple[str, ...]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return text if text in words else kind(text)

    read.__name__ = " or ".join((kind.__name__, *words))  # in argparse's "invalid ... value"
    return read


def device_name(text: str) -> str:
    """The type of --device.

    Raises:
        ArgumentTypeError: not the name of a device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, got {text!r}")
    return text


def named_models(given: list[str]) -> dict[str, str]:
    """The models of a flag that takes label=model several times, by label, in their order.

    Raises:
        BildError: one that is not label=model, or a label given twice.
    """
    models: dict[str, str] = {}
    for text in given:
        label, equals, model = text.partition("=")
        if not (equals and model and re.fullmatch(r"[\w.-]+", label)):
            raise BildError(f"--small must be label=model, as aligned=my/aligned, got {text!r}")
        if label in models:
            raise BildError(f"--small has the label {label!r} twice; give each model its own")
        models[label] = model
    return models
