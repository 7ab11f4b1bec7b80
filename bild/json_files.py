"""JSON files that are read: whatever is wrong with one is a sentence, and memory is bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bild.errors import BildError

LARGEST_BYTES = 50_000_000  # a card, a record or a state is far shorter


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        way_out: what to do about one that cannot be used.

    Raises:
        BildError: it cannot be read, is not JSON, or holds something else; with the line.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BildError(f"{path} cannot be read ({reason}); {way_out}") from None
    if len(content) > LARGEST_BYTES:
        raise BildError(f"{path} is longer than {LARGEST_BYTES:,} bytes; {way_out}")
    try:
        found = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BildError(f"{path} is not UTF-8 ({error.reason}); {way_out}") from None
    except json.JSONDecodeError as error:
        raise BildError(
            f"{path}, line {error.lineno} is not JSON ({error.msg}); {way_out}"
        ) from None
    except RecursionError:
        raise BildError(f"{path} is nested too deeply; {way_out}") from None
    except ValueError as error:  # such as a number of too many digits
        raise BildError(f"{path} is not JSON ({error}); {way_out}") from None
    if not isinstance(found, dict):
        raise BildError(f"{path} holds no object but a {type(found).__name__}; {way_out}")
    return found
