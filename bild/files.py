"""Files that are written whole or not at all, and folders that can be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bild.errors import BildError


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is never seen half written."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def check_writable(folder: Path) -> None:
    """Make a folder, or say in one sentence why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BildError(
            f"cannot write to the output folder {str(folder)!r} ({error.strerror}); "
            "choose another with --output-dir"
        ) from None


def check_file(path: Path) -> None:
    """Make sure that a file of this name can be written, or say in one sentence why not."""
    if path.is_dir():
        raise BildError(f"{str(path)!r} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BildError(f"cannot write {str(path)!r} ({error.strerror}); choose another") from None
