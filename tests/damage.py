"""Damage to files, drawn by hypothesis: to their bytes, and to the values of their JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bild.errors import BildError

# What a value may be that nobody expects there.
ODD = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 3, 10**6, 10**20, -(10**20), 0.5, -1e300, 1e300, "", "nan",
        "x" * 5000, "\x1b[2J", "\u2028", "../../etc", "inf", [], [1], [[]], {}, {"a": 1},
    ]
)  # fmt: skip
PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"", b"\0" * 40, b"\xff", b"\n", b"\n\n", b"{", b"}", b"[" * 5000, b'"', b",", b"9" * 5000]
    ),
)


@st.composite
def broken_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """The content of a file after one to three accidents: cut, filled, doubled, moved."""
    content = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 200)))
        what = draw(st.sampled_from(("cut off", "replace", "double", "move")))
        if what == "cut off":
            content = content[:start]
        elif what == "replace":
            content = content[:start] + draw(PIECES) + content[end:]
        elif what == "double":
            content = content[:end] + content[start:]
        else:
            content = content[:start] + content[end:] + content[start:end]
    return content


@st.composite
def broken_json(draw: st.DrawFn, whole: Any) -> Any:
    """JSON values of which one or two, at any depth, are gone, odd, or there twice."""
    content = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 2))):
        spots = list(_spots(content))
        if not spots:
            break
        holder, key = draw(st.sampled_from(spots))
        what = draw(st.sampled_from(("odd", "odd", "odd", "gone", "added")))
        if what == "odd":
            holder[key] = draw(ODD)
        elif what == "gone":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(("other", "auto_map", "", "schema")))] = draw(ODD)
        else:
            holder.append(holder[key])
    return content


def _spots(content: Any) -> Any:
    """(holder, key) of all values."""
    keys = content.keys() if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from _spots(content[key])


def taken_or_refused(read: Callable[[], Any], *names: Path | str) -> bool:
    """Whether a file was taken; where it was not, the refusal is one sentence that names it.

    Raises:
        AssertionError: another refusal; whatever else `read` raises is a stack trace to a user.
    """
    try:
        read()
    except BildError as error:
        said = str(error)
        assert any(str(name) in said for name in names), said
        assert "\n" not in said, said
        assert len(said) < 3000, said
        return False
    return True
