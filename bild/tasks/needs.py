"""What a task or a pair needs: what of it is on this machine, and the download of the rest.

Something is here when it is found without asking the hub, by the very code that runs look it up
with; so what is here after a download is found again where there is no network.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from bild.checkpoints import hub
from bild.checkpoints.contents import (
    NO_TOKENIZER,
    TOKENIZER_FILES,
    DefectError,
    model_files,
    tokenizer_files,
)
from bild.checkpoints.names import (
    DEFAULT_REVISION,
    EARLY_EXIT,
    allows_pickle,
    resolve_model,
    resolve_tokenizer,
)
from bild.errors import BildError
from bild.tasks.data import load_examples, parquet_files
from bild.tasks.registry import Task

Sort = Literal["model", "tokenizer", "data"]


@dataclass(frozen=True)
class Place:
    """Where something is on this machine.

    Attributes:
        path: the folder, or the data's file or hub id.
        revision: its commit on the hub; None for what is not from there.
    """

    path: str
    revision: str | None


@dataclass(frozen=True)
class Need:
    """Something that a run reads.

    Attributes:
        role: "large", "small", "aligned", "drafter", "tokenizer" or "data".
        sort: what is looked for.
        name: a folder or hub id, of data the hub id or the name of their file.
        task: of data: whose.
        with_tokenizer: of a model: a tokenizer must lie beside it.
    """

    role: str
    sort: Sort
    name: str
    task: Task | None = None
    with_tokenizer: bool = False

    def obtain(self) -> Place:
        """Where it is; downloaded, if it has to be.

        Raises:
            BildError: it cannot be had.
        """
        if self.task is not None:
            data = load_examples(self.task, None)
            return Place(data.origin, data.revision)
        found = (resolve_tokenizer if self.sort == "tokenizer" else resolve_model)(self.name)
        if self.with_tokenizer:
            resolve_tokenizer(found)
        return Place(str(found.path), found.revision)

    def find(self) -> Place | None:
        """Where it is on this machine; None when it would have to be downloaded.

        Raises:
            BildError: it is here and cannot be used, or the name can be none.
        """
        try:
            with hub.unasked():
                return self.obtain()
        except BildError as error:
            if isinstance(error.__cause__, hub.NotObtainedError):
                return None
            raise

    def lacking(self) -> dict[str, int]:
        """Of something that is not here: name -> bytes of each file to download.

        Raises:
            BildError: the hub cannot be reached, or does not have it.
        """
        kind: hub.Kind
        choose: Callable[[Iterable[str]], list[str]]
        if self.task is not None and self.task.data is not None:
            data = self.task.data
            name, revision, kind = data.path, data.revision, "dataset"
            choose = partial(parquet_files, data)
        else:
            name, _, given = self.name.partition("@")
            revision, kind, choose = given or DEFAULT_REVISION, "model", self._files
        try:
            return hub.lacking(name, revision, kind, choose)
        except hub.NotObtainedError as error:
            way_out = "check the name" if error.answered else "connect to the network"
            at = "" if revision == DEFAULT_REVISION else f" at {revision}"
            raise BildError(
                f"{self.role} {name!r}{at} is not on this machine, and {error.sentence}: {way_out}"
            ) from error

    def _files(self, names: Iterable[str]) -> list[str]:
        """Of the files of a repository those to download, if all that is needed is among them."""
        if self.sort == "tokenizer":
            return tokenizer_files(names)
        try:
            files = model_files(names, allows_pickle(self.name))
        except DefectError as defect:
            raise BildError(f"{self.role} {self.name!r} on the hub {defect}") from None
        if self.with_tokenizer and not set(files) & set(TOKENIZER_FILES):
            raise BildError(f"{self.role} {self.name!r} on the hub {NO_TOKENIZER}")
        return files


def needs_of_task(task: Task, modes: Sequence[str]) -> tuple[Need, ...]:
    """What a task's runs read: the large model, the small ones of some modes, tokenizer, data.

    Args:
        task: where everything is.
        modes: of `MODES`; those without a checkpoint are refused.

    Raises:
        BildError: the task has no small model for a mode.
    """
    small = {
        "small" if mode == "unaligned" else mode: task.small_model(mode)
        for mode in modes
        if mode != "vanilla"
    }
    named = {role: name for role, name in small.items() if name is not None}
    data_name = str(task.file) if task.data is None else task.data.path
    data = Need("data", "data", data_name, task=task)
    return (*needs_of_pair(task.large, named, task.tokenizer), data)


def needs_of_pair(
    large: str | None, small: dict[str, str], tokenizer: str | None
) -> tuple[Need, ...]:
    """What decoding with a pair reads; without a tokenizer the one beside the large model.

    Args:
        large: folder or hub id; None: no large model.
        small: role -> folder or hub id; "early-exit:N" needs nothing.
        tokenizer: folder or hub id.
    """
    needs = []
    if large is not None:
        needs.append(Need("large", "model", large, with_tokenizer=tokenizer is None))
    for role, name in small.items():
        if EARLY_EXIT.fullmatch(name) is None:
            needs.append(Need(role, "model", name))
    if tokenizer is not None:
        needs.append(Need("tokenizer", "tokenizer", tokenizer))
    return tuple(needs)


def room_for(path: Path) -> int:
    """Bytes that are free where a folder is, or would be."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free
