"""The one exception that means "the user can fix this"."""

from __future__ import annotations

from importlib.util import find_spec


class BildError(ValueError):
    """A mistake in what the user gave: one sentence that names the value and the way out.

    The scripts print it alone, without a stack trace, and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
