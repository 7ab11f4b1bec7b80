"""Checkpoints by name: a folder, a mirror laid out by hub id, the hub's cache, or the hub.

A name is resolved once, into a `Checkpoint`; everything that loads or describes a model takes that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError

from bild.checkpoints import hub
from bild.checkpoints.contents import (
    NO_TOKENIZER,
    TOKENIZER_FILES,
    DefectError,
    PickleError,
    check_model,
    check_tokenizer,
    has_tokenizer,
    model_files,
    tokenizer_files,
)
from bild.errors import BildError
from bild.parser import ALLOW_PICKLE

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_REVISION = "main"
EARLY_EXIT = re.compile(r"early-exit:(\d+)")  # a small model that is the large one's first layers
# The checkpoints that the tasks name themselves are read as the paper's authors published them;
# what else is named must be safetensors.
PUBLISHED = frozenset((
    "kssteven/mT5-large-iwslt2017-de-en", "kssteven/mT5-small-iwslt2017-de-en",
    "kssteven/mT5-small-iwslt2017-de-en-bild-aligned", "kssteven/mT5-large-wmt2014-de-en",
    "kssteven/mT5-small-wmt2014-de-en", "kssteven/mT5-small-wmt2014-de-en-bild-aligned",
    "kssteven/T5-large-xsum", "kssteven/T5-small-xsum", "kssteven/T5-small-xsum-bild-aligned",
    "kssteven/T5-large-cnndm", "kssteven/T5-small-cnndm", "kssteven/T5-small-cnndm-bild-aligned",
    "SEBIS/code_trans_t5_large_api_generation_transfer_learning_finetune",
    "SEBIS/code_trans_t5_small_api_generation_transfer_learning_finetune",
))  # fmt: skip
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A model or a tokenizer that has been found; all its files are on this machine.

    Attributes:
        name: as it was asked for, without a revision.
        path: the folder that holds it.
        revision: its commit on the hub; None for any other folder.
    """

    name: str
    path: Path
    revision: str | None


CheckpointName = str | os.PathLike[str] | Checkpoint  # a folder or a hub id, or what it is


def resolve_model(name: CheckpointName, allow_pickle: bool = False) -> Checkpoint:
    """The model called `name`; downloaded, if it has to be.

    In this order: a folder of that name (also one relative to this repository's root, as
    `demo/large`); `$BILD_MODELS_ROOT/<name>`; the hub's cache; the hub. A hub id may be followed by
    a commit, tag or branch, `owner/name@revision`; without one it is "main" as the cache knows it,
    or else as it is on the hub today.

    Args:
        name: a folder or a hub id; a `Checkpoint` is returned as it is.
        allow_pickle: take weights that are no safetensors; also with `BILD_ALLOW_PICKLE=1`.

    Raises:
        BildError: no such folder or id, a folder without weights, or with a pickle of them that
            was not allowed; named, with the way out.
    """
    if isinstance(name, Checkpoint):
        return name
    text = _as_text(name)
    return _resolve(text, _PICKLED_TOO if allow_pickle or allows_pickle(text) else _MODEL)


def allows_pickle(name: str) -> bool:
    """Whether weights of that name may be pickles without anybody's saying so with it."""
    return os.environ.get(ALLOW_PICKLE) == "1" or name.partition("@")[0] in PUBLISHED


def resolve_tokenizer(name: CheckpointName) -> Checkpoint:
    """The tokenizer called `name`; the order of `resolve_model`.

    Args:
        name: a folder or a hub id; for the `Checkpoint` of a model, the tokenizer beside it.

    Raises:
        BildError: no such folder or id, or a folder without a tokenizer.
    """
    if not isinstance(name, Checkpoint):
        return _resolve(_as_text(name), _TOKENIZER)
    if has_tokenizer(name.path):
        return name
    if name.revision is None or Path(name.name).expanduser().is_dir():
        raise BildError(f"tokenizer folder {str(name.path)!r} {NO_TOKENIZER}")
    # Something else has put it into the hub's cache without its tokenizer.
    return _resolve(f"{name.name}@{name.revision}", _TOKENIZER)


def mirror_root(variable: str) -> Path | None:
    """The folder an environment variable names; None when it is unset or empty.

    Raises:
        BildError: it names something that is not a folder.
    """
    value = os.environ.get(variable, "")
    if not value:
        return None
    root = Path(value).expanduser()
    if not root.is_dir():
        raise BildError(f"{variable} is {value!r}, which is not a folder; correct it or unset it")
    return root


@dataclass(frozen=True)
class _Sort:
    """What is looked for: what it is called, when a folder holds it, which files are fetched."""

    what: str
    check: Callable[[Path], None]
    choose: Callable[[Iterable[str]], list[str]]
    patterns: Sequence[str] = ()  # files that must all be in the cache, of those on the hub


_MODEL = _Sort("model", check_model, model_files)
_PICKLED_TOO = replace(
    _MODEL,
    check=partial(check_model, allow_pickle=True),
    choose=partial(model_files, allow_pickle=True),
)
_TOKENIZER = _Sort("tokenizer", check_tokenizer, tokenizer_files, TOKENIZER_FILES)


def _as_text(name: Any) -> str:
    try:
        text = os.fspath(name)
    except TypeError:
        text = None
    if not isinstance(text, str):  # bytes can be a path too
        raise BildError(f"a model must be named by a folder or a hub id, got {name!r}")
    return text


def _resolve(name: str, sort: _Sort) -> Checkpoint:
    folder = _local_folder(name)
    if folder is not None:
        try:
            sort.check(folder)
        except DefectError as defect:
            raise BildError(f"{sort.what} folder {str(folder)!r} {defect}") from None
        return Checkpoint(name, folder, _commit_of(folder))
    if Path(name).expanduser().is_file():
        raise BildError(f"{sort.what} {name!r} is a file; give the folder it lies in")
    hub_id, at, revision = name.partition("@")
    if _is_path(hub_id):
        raise BildError(f"{sort.what} folder {name!r} does not exist; give a folder or a hub id")
    if at and not revision:
        raise BildError(
            f"{sort.what} {name!r} names no revision after the @; leave it out or add it"
        )
    if at and _local_folder(hub_id) is not None:
        raise BildError(
            f"{sort.what} {name!r} is asked for at a revision, but {str(_local_folder(hub_id))!r} "
            f"is a folder, which has none; leave @{revision} out, or move the folder"
        )
    try:
        path = _from_hub(hub_id, revision or DEFAULT_REVISION, sort)
    except HFValidationError:
        raise BildError(
            f"{sort.what} {name!r} is neither a folder nor a hub id; give a folder or owner/name"
        ) from None
    return Checkpoint(hub_id, path, _commit_of(path))


def _from_hub(hub_id: str, revision: str, sort: _Sort) -> Path:
    folder = hub.cached(hub_id, revision, "model", sort.patterns)
    if folder is not None:
        try:
            sort.check(folder)
        except PickleError as defect:
            raise BildError(f"{sort.what} {hub_id!r} in the hub's cache {defect}") from None
        except DefectError:
            pass  # half a download, or another's: the rest is fetched
        else:
            return folder
    at = "" if revision == DEFAULT_REVISION else f" at {revision}"
    try:
        folder = hub.fetch(hub_id, revision, "model", sort.choose)
        sort.check(folder)
    except hub.NotObtainedError as error:
        root = mirror_root("BILD_MODELS_ROOT")
        mirror = "BILD_MODELS_ROOT" if root is None else f"BILD_MODELS_ROOT ({root})"
        way_out = "check the name" if error.answered else "connect to the network"
        raise BildError(
            f"{sort.what} {hub_id!r}{at} is neither in the local cache nor under {mirror}, and "
            f"{error.sentence}: {way_out}, or set BILD_MODELS_ROOT to a folder that holds {hub_id}"
        ) from error
    except DefectError as defect:
        raise BildError(f"{sort.what} {hub_id!r}{at} on the hub {defect}") from None
    return folder


def _commit_of(folder: Path) -> str | None:
    """The commit of a folder of the hub's cache; None for any other folder."""
    is_snapshot = folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


def _local_folder(name: str) -> Path | None:
    """The folder that `name` stands for on this machine, outside the hub's cache."""
    if not name.strip():
        raise BildError(f"a model must be named by a folder or a hub id, got {name!r}")
    path = Path(name).expanduser()
    candidates = [path]
    if not _is_path(name):
        root = mirror_root("BILD_MODELS_ROOT")
        candidates += [] if root is None else [root / name]
        candidates.append(REPOSITORY_ROOT / name)
    try:
        return next((c for c in candidates if c.is_dir()), None)
    except OSError as error:
        raise BildError(f"{name!r:.60} cannot be a folder: {error.strerror}") from None


def _is_path(name: str) -> bool:
    """Whether a name can only mean a folder: hub ids are `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
