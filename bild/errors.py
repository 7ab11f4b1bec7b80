"""The one exception that means "the user can fix this"."""

from __future__ import annotations


class BildError(ValueError):
    """A mistake in what the user gave: one sentence that names the value and the way out.

    The scripts print it alone, without a stack trace, and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
