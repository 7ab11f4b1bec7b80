"""Where memory is short, on a GPU or a CPU: which settings take some."""

from __future__ import annotations

from collections.abc import Container

from bild.errors import BildError, first_line
from bild.parser import Parser

# What torch says of a CPU, in an error without a type of its own.
SAID = "DefaultCPUAllocator: can't allocate memory"
# Flags of numbers that should be lower, and of what takes less.
LOWER = (
    "--batch-size", "--label-batch-size", "--max-length", "--max-source-length",
    "--max-source-tokens", "--max-new-tokens",
)  # fmt: skip
TAKE = {"--dtype": "--dtype bfloat16", "--device": "--device cpu"}


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the GPU or the machine has no memory left."""
    while error is not None:
        # By name: torch, whose error it is, need not be loaded.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if SAID in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def advice(error: BaseException, resumes: bool, flags: Container[str]) -> str:
    """What happened, and what to do about it, in a sentence.

    Args:
        error: of which `is_out_of_memory` says so.
        resumes: whether the same command goes on where it ended.
        flags: of the command.
    """
    lower = ", ".join(flag for flag in LOWER if flag in flags)
    take = " or ".join(text for flag, text in TAKE.items() if flag in flags)
    parts = [
        f"no memory is left ({first_line(error)})",
        f"lower {lower}" if lower else "",
        f"take {take}" if take else "",
        "what is finished is kept, and with more free memory the same command goes on from here"
        if resumes
        else "",
    ]
    return "; ".join(part for part in parts if part)


def of_a_text(error: BaseException) -> BaseException:
    """An error that one text has met; a sentence for who gave it where it is that of no memory."""
    if not is_out_of_memory(error):
        return error
    return BildError(f"give a shorter text: {advice(error, False, Parser.flags)}")
