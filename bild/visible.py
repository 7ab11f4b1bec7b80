"""Text of data, models and users as it may be shown: it steers no terminal and breaks no XML."""

from __future__ import annotations

import io
import sys
import unicodedata

# Written as escapes: control characters, halves of surrogate pairs, separators of lines and
# paragraphs, and what is no character at all.
HIDDEN = {"Cc", "Cs", "Zl", "Zp", "Cn"}
# So are those that turn the direction of the text after them.
TURNING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def visible(text: str) -> str:
    """The same text in one line, with everything that is not for reading written as an escape.

    Line breaks and tabs become spaces; an escape character becomes the four letters `\\x1b`. What
    is left is valid in XML.
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if unicodedata.category(character) in HIDDEN or character in TURNING:
        return character.encode("unicode_escape").decode("ascii")
    return character


def show_any_text() -> None:
    """Let the standard streams write "?" for letters that a terminal of another alphabet lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def sentence(error: object, longest: int = 1200, longest_word: int = 160) -> str:
    """An error's message as it may be shown: visible, and cut where nobody would read on.

    Args:
        error: an exception or a text.
        longest: characters of the message.
        longest_word: characters without a space, such as of a value that is quoted.
    """
    words = visible(str(error)).split(" ")
    return _cut(" ".join(_cut(word, longest_word) for word in words), longest)


def _cut(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"
