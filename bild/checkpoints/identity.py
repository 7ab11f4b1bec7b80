"""What a checkpoint is called in records: id, revision, content, size; no machine's folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.checkpoints.contents import CONFIG_FILES, TOKENIZER_FILES, weight_files
from bild.checkpoints.names import Checkpoint, CheckpointName, resolve_model, resolve_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def describe_model(checkpoint: CheckpointName, model: PreTrainedModel) -> dict[str, Any]:
    """Id, revision, content and size of a loaded model; a folder is named by its last two parts.

    The content is a SHA-256 over the configuration, the settings of generation and the weights:
    the same for one checkpoint, wherever it came from, and another one after any change.
    """
    found = resolve_model(checkpoint)
    configuration = [found.path / name for name in CONFIG_FILES]
    files = [*configuration, *weight_files(found.path)]
    return {**_identity(found, files), "parameters": model.num_parameters()}


def describe_tokenizer(checkpoint: CheckpointName) -> dict[str, Any]:
    """Id, revision and content of a tokenizer, all its files; as `describe_model`."""
    found = resolve_tokenizer(checkpoint)
    return _identity(found, [found.path / name for name in TOKENIZER_FILES])


def _identity(checkpoint: Checkpoint, files: Iterable[Path]) -> dict[str, Any]:
    given = Path(checkpoint.name).expanduser()
    return {
        "id": "/".join(given.resolve().parts[-2:]) if given.is_dir() else checkpoint.name,
        "revision": checkpoint.revision,
        "fingerprint": fingerprint(files),
    }


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files, in order of name; those not there are left out.

    A file that is not there is told from an empty one, since its name does not count either.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        if not file.is_file():
            continue
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def short_path(name: str | None) -> str | None:
    """A path without the folders of the machine it was used on; other names as they are."""
    if name is None or not Path(name).is_absolute():
        return name
    return "/".join(Path(name).parts[-2:])
