"""Which checkpoint a training goes on from: the newest that is whole."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bild.errors import BildError
from bild.json_files import read_json

# As transformers' trainer names what it saves; without one of these it would go on otherwise than
# it was, without a word.
STATE = "trainer_state.json"
PICKLED = ("optimizer.pt", "scheduler.pt")


def last_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence on each newer one.

    Args:
        folder: of checkpoints, `checkpoint-<step>`; may be empty.

    Returns:
        (None, ...) where there is none: the training begins anew.
    """
    found = [path for path in folder.glob("checkpoint-*") if step_of(path) > 0]
    passed_over: list[str] = []
    for checkpoint in sorted(found, key=step_of, reverse=True):
        fault = what_is_wrong(checkpoint)
        if fault is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint} is not whole ({fault}); it is passed over")
    return None, passed_over


def remove_half_deleted(folder: Path, last: Path) -> None:
    """Remove older checkpoints that are not whole: a training that was killed was deleting them.

    Args:
        folder: of checkpoints.
        last: the one that the training goes on from.
    """
    for checkpoint in folder.glob("checkpoint-*"):
        if 0 < step_of(checkpoint) < step_of(last) and what_is_wrong(checkpoint) is not None:
            shutil.rmtree(checkpoint, ignore_errors=True)


def remove_scratch(folder: Path) -> None:
    """Remove what a training that was killed had begun to write under another name.

    The trainer writes such a checkpoint again in the same folder, where it would stay for good.

    Args:
        folder: of checkpoints.
    """
    for file in folder.glob("checkpoint-*/.tmp*"):  # as safetensors and tokenizers name it
        file.unlink(missing_ok=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint's name says were done; -1 where it says none."""
    found = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(found[1]) if found else -1


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a training cannot go on from this checkpoint; None if it can.

    The trainer writes its state last, so that a checkpoint it was writing when it was stopped has
    none. Weights are checked for their size, everything else for its content.
    """
    try:
        state = read_json(checkpoint / STATE, "another checkpoint is taken")
    except BildError:
        return f"{STATE} cannot be read"
    if state.get("global_step") != step_of(checkpoint):
        return f"{STATE} is not that of step {step_of(checkpoint)}"
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        return "there are no weights"
    for file in weights:
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError):
            return f"{file.name} cannot be read"
    pickled = [*(checkpoint / name for name in PICKLED), *sorted(checkpoint.glob("*.pth"))]
    return next((f"{file.name} cannot be read" for file in pickled if not _is_whole(file)), None)


def _is_whole(file: Path) -> bool:
    """Whether a file of `torch.save`, which is a zip archive, has all its bytes as written."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError):
        return False
