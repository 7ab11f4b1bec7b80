"""The one exception that means "the user can fix this"."""

from __future__ import annotations


class BildError(ValueError):
    """A mistake in what the user gave: one sentence that names the value and the way out.

    The scripts print it alone, without a stack trace, and exit with code 2.
    """
