"""The hub: what its cache holds, and one try to fetch what it does not hold.

The cache comes first, so that a name that was loaded once is read again without any request. Only
then the hub is asked, once: `BILD_HUB_TIMEOUT` says how many seconds it has to answer (10).
"""

from __future__ import annotations

import glob
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bild.errors import BildError, first_line

Kind = Literal["model", "dataset"]
TIMEOUT_SECONDS = 10.0
_unasked: ContextVar[bool] = ContextVar("_unasked", default=False)


class NotObtainedError(Exception):
    """Why something did not come from the hub, in a few words.

    Attributes:
        answered: whether the hub was reached and said so itself.
    """

    def __init__(self, reason: str, answered: bool) -> None:
        super().__init__(reason)
        self.answered = answered

    @property
    def sentence(self) -> str:
        """What goes after "and", without a full stop."""
        does = "does not give it" if self.answered else "cannot be reached"
        return f"{constants.ENDPOINT} {does} ({self})"


@contextmanager
def unasked() -> Iterator[None]:
    """While it lasts the hub is not asked: what is not on this machine is not obtained."""
    token = _unasked.set(True)
    try:
        yield
    finally:
        _unasked.reset(token)


def cached(name: str, revision: str, kind: Kind, patterns: Sequence[str] = ()) -> Path | None:
    """The folder of a repository in the hub's cache; None when it is not there.

    Args:
        name: hub id.
        revision: branch, tag or commit.
        kind: of repository.
        patterns: names of files that must all have been downloaded, of those the repository has.

    Raises:
        HFValidationError: a name that cannot be a hub id.
    """
    from huggingface_hub import snapshot_download  # takes half a second, so only here

    try:
        folder = snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def fetch(
    name: str, revision: str, kind: Kind, choose: Callable[[Iterable[str]], list[str]]
) -> Path:
    """Download some files of a repository; the folder of the cache that then holds them.

    Args:
        name, revision, kind: as `cached`.
        choose: of the names of all files of the repository, those to download.

    Raises:
        NotObtainedError: the hub cannot be reached, or does not have it.
    """
    from huggingface_hub import snapshot_download

    seconds = timeout_seconds()
    files = choose(file.rfilename for file in _info(name, revision, kind).siblings or ())
    if not files:
        raise NotObtainedError(f"revision {revision!r} has no such files", answered=True)
    try:
        folder = snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=[glob.escape(file) for file in files],
            etag_timeout=seconds,
        )
    except Exception as error:  # see _ask
        raise _not_obtained(error) from error
    return Path(folder)


def lacking(
    name: str, revision: str, kind: Kind, choose: Callable[[Iterable[str]], list[str]]
) -> dict[str, int]:
    """What `fetch` would download now: name -> bytes of each file that the cache lacks.

    Raises:
        NotObtainedError: as `fetch`.
    """
    from huggingface_hub import try_to_load_from_cache

    info = _info(name, revision, kind, with_sizes=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = choose(sizes)
    if not files:
        raise NotObtainedError(f"revision {revision!r} has no such files", answered=True)
    return {
        file: sizes[file]
        for file in files
        if not isinstance(
            try_to_load_from_cache(name, file, revision=info.sha, repo_type=kind), str
        )
    }


def _info(name: str, revision: str, kind: Kind, with_sizes: bool = False) -> Any:
    """What the hub says of a repository: its commit and its files."""
    from huggingface_hub import HfApi

    if _unasked.get():
        raise NotObtainedError("it is not asked", answered=False)
    seconds = timeout_seconds()
    return _ask(
        lambda: HfApi().repo_info(
            name, repo_type=kind, revision=revision, timeout=seconds, files_metadata=with_sizes
        ),
        seconds,
    )


def timeout_seconds() -> float:
    """How long the hub has to answer: `BILD_HUB_TIMEOUT`, or 10 seconds.

    Raises:
        BildError: it is not a number above 0.
    """
    text = os.environ.get("BILD_HUB_TIMEOUT", "")
    if not text:
        return TIMEOUT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BildError(f"BILD_HUB_TIMEOUT must be a number of seconds above 0, got {text!r}")
    return seconds


def _ask(question: Callable[[], Any], seconds: float) -> Any:
    """The answer to one request. In a thread, since a name look-up has no time limit of its own."""
    answers: list[Any] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        # Transport errors are those of the client's HTTP library, and have no other root.
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise _not_obtained(errors[0]) from errors[0]
    if not answers:
        raise NotObtainedError(
            f"no answer within {seconds:g} seconds; BILD_HUB_TIMEOUT sets the limit", answered=False
        )
    return answers[0]


def _not_obtained(error: Exception) -> NotObtainedError:
    """What went wrong, as far as its type tells; else its own words."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _not_obtained(error.__cause__)
    if isinstance(error, OfflineModeIsEnabled):
        return NotObtainedError("HF_HUB_OFFLINE is set", answered=False)
    if isinstance(error, GatedRepoError):
        return NotObtainedError("it is gated: ask for access and log in", answered=True)
    if isinstance(error, RepositoryNotFoundError):
        return NotObtainedError("there is none of that name, or not without a login", answered=True)
    if isinstance(error, RevisionNotFoundError):
        return NotObtainedError("it has no such revision", answered=True)
    reason = f"{type(error).__name__}: {first_line(error)}"
    return NotObtainedError(reason, answered=isinstance(error, HfHubHTTPError))
