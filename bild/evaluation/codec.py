"""Dataclasses as JSON and back, by their type hints: a file holds what the code declares."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bild.errors import BildError
from bild.files import finite

T = TypeVar("T")

PLAIN = (int, float, str, bool)  # values of these types are taken as they are


def encode(value: Any) -> Any:
    """JSON values of a dataclass; floats that JSON cannot hold become "nan", "inf" and "-inf"."""
    return finite(asdict(value))


def decode(kind: type[T], content: Any) -> T:
    """The inverse of `encode`.

    Args:
        kind: a dataclass whose fields are dataclasses, plain values, lists, tuples or dicts.
        content: JSON values.

    Raises:
        BildError: a field that is missing, unknown or of another type, by name.
    """
    value: T = _decode(kind, content, "")
    return value


def _decode(kind: Any, content: Any, name: str) -> Any:
    if type(content) is kind and kind in PLAIN:  # most of what there is
        return content
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return content
    if is_dataclass(kind):
        return _decode_dataclass(kind, content, name)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, content, name)
    if origin is Literal:
        _require(content in arguments, name, content)
        return content
    if origin in (list, tuple, Sequence):
        _require(isinstance(content, list), name, content)
        one = arguments[0]
        whole = list if origin is list else tuple
        if origin is tuple and len(arguments) > 1 and arguments[1] is not ...:
            _require(len(content) == len(arguments), name, content)
            return tuple(_decode(a, c, name) for a, c in zip(arguments, content, strict=True))
        if one in PLAIN and all(type(c) is one for c in content):  # such as a line's tokens
            return whole(content)
        return whole(_decode(one, c, f"{name}[{i}]") for i, c in enumerate(content))
    if origin in (dict, Mapping):
        _require(isinstance(content, dict), name, content)
        key, value = arguments
        return {
            _decode_key(key, k, name): _decode(value, v, f"{name}.{k}") for k, v in content.items()
        }
    return _decode_plain(kind, content, name)


def _decode_key(kind: Any, key: str, name: str) -> Any:
    """A key, which JSON has as text alone."""
    if kind is not int:
        return _decode(kind, key, name)
    _require(key.isdecimal(), name, key)
    return int(key)


def _decode_union(kinds: tuple[Any, ...], content: Any, name: str) -> Any:
    """Of the first kind that the content is of; what the last one says where it is of none."""
    if content is None and type(None) in kinds:
        return None
    *others, last = (kind for kind in kinds if kind is not type(None))
    for kind in others:
        with suppress(BildError):
            return _decode(kind, content, name)
    return _decode(last, content, name)


def _decode_plain(kind: Any, content: Any, name: str) -> Any:
    if kind is float:
        if content in ("nan", "inf", "-inf"):
            return float(content)
        _require(isinstance(content, (int, float)) and not isinstance(content, bool), name, content)
        return content
    _require(type(content) is kind, name, content)
    return content


def _decode_dataclass(kind: Any, content: Any, name: str) -> Any:
    _require(isinstance(content, dict), name, content)
    hints, needed = _fields(kind)
    odd = sorted((needed - content.keys()) | (content.keys() - hints.keys()))
    if odd:
        where = f"{name}.{odd[0]}" if name else odd[0]
        raise BildError(f"field {where!r} is missing or unknown")
    prefix = f"{name}." if name else ""
    return kind(
        **{n: _decode(hint, content[n], prefix + n) for n, hint in hints.items() if n in content}
    )


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of a dataclass' fields, in their order, and the names of those that must be set."""
    hints, own = get_type_hints(kind), fields(kind)
    needed = (f.name for f in own if f.default is MISSING and f.default_factory is MISSING)
    return {f.name: hints[f.name] for f in own}, frozenset(needed)


def _require(holds: bool, name: str, content: Any) -> None:
    if not holds:
        raise BildError(f"field {name!r} cannot be {content!r:.40}")
