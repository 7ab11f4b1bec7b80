"""The one exception that means "the user can fix this"."""

from __future__ import annotations

import errno
from importlib.util import find_spec


class BildError(ValueError):
    """A mistake in what the user gave: one sentence that names the value and the way out.

    The scripts print it alone, without a stack trace, and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# What libraries make of it that write files by code of their own (safetensors, tokenizers, torch).
NO_ROOM_SAID = (
    "No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing",
    "unexpected pos", "basic_ios::clear: iostream error",
)  # fmt: skip


def is_no_room(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        if any(said in str(error) for said in NO_ROOM_SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def require(extra: str, *modules: str) -> None:
    """Refuse to go on without the packages of an extra; a wing calls it as it is imported.

    Nothing is imported to find out.

    Raises:
        BildError: names the modules that are not installed, and the commands that install them.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise BildError(
            f"{', '.join(missing)} not installed; pip install -e '.[{extra}]' in a checkout brings "
            f"what is needed here, elsewhere it is the extra big-little-decoder[{extra}]"
        )
