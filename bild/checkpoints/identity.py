"""What a checkpoint is called in records: id, revision, content, size; no machine's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bild.checkpoints import hub


def describe_model(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """Id, revision, content and size of a loaded model; a folder is named by its last two parts.

    The same for one checkpoint, whether it came from the hub just now or from its cache.
    """
    folder = hub.loaded_folder(hub.resolve_model(name))
    identity = _identity(name, folder, hub.fingerprint(folder))
    return {**identity, "parameters": model.num_parameters()}


def describe_tokenizer(name: str) -> dict[str, Any]:
    """Id, revision and content of a loaded tokenizer; as `describe_model`."""
    folder = hub.loaded_folder(hub.resolve_tokenizer(name))
    return _identity(name, folder, hub.fingerprint(folder, hub.TOKENIZER_FILES))


def _identity(name: str, folder: Path, fingerprint: str) -> dict[str, Any]:
    given = Path(name).expanduser()
    return {
        "id": "/".join(given.resolve().parts[-2:]) if given.is_dir() else name,
        "revision": hub.resolve_revision(str(folder)),
        "fingerprint": fingerprint,
    }


def short_path(name: str | None) -> str | None:
    """A path without the folders of the machine it was used on; other names as they are."""
    if name is None or not Path(name).is_absolute():
        return name
    return "/".join(Path(name).parts[-2:])
