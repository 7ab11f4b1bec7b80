"""Why a library cannot be imported, where that is the machine's fault, not the program's."""

from __future__ import annotations

import os
from types import TracebackType

from bild.errors import first_line

# How the variables begin that a library reads while it is imported.
READS = {
    "huggingface_hub": ("HF_",),
    "transformers": ("TRANSFORMERS_", "HF_"),
    "datasets": ("HF_",),
    "torch": ("TORCH", "PYTORCH_"),
    "matplotlib": ("MPL",),
}
UNLIKE_TORCHVISION = (
    "the installed torchvision belongs to another torch, so that transformers cannot be imported; "
    "pip uninstall torchvision torchaudio (nothing here needs them), or install those of this torch"
)


def why_not_imported(error: BaseException | None) -> str | None:
    """A sentence for a user; None for an error, or one behind it, that needs another explanation.

    Args:
        error: raised, with its stack trace.
    """
    while error is not None:
        if "torchvision::nms" in str(error):
            return UNLIKE_TORCHVISION
        library = _imported(error.__traceback__)
        read = sorted(name for name in os.environ if name.startswith(READS.get(library, ())))
        if read:  # their names alone: one may hold a password
            return (
                f"{library} cannot be imported ({type(error).__name__}: {first_line(error)}); "
                f"correct or unset what it reads from the environment: {', '.join(read)}"
            )
        error = error.__cause__ or error.__context__
    return None


def _imported(trace: TracebackType | None) -> str:
    """The library whose module was being imported at the end of a stack trace; empty if none."""
    library = ""
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "<module>":
            library = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        trace = trace.tb_next
    return library
