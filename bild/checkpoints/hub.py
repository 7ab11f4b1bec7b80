"""Checkpoints by name: a folder, a mirror laid out by hub id, the hub's cache, or the hub.

Nothing here downloads. It finds out, within two seconds, whether a name can be loaded and from
where; without a network the hub's clients alone retry for about 25 seconds before they give up.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from bild.errors import BildError

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
SINGLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDEXES = ("*.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")

# A git checkout without LFS leaves these few lines in place of the weights.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

CONNECT_SECONDS = 1.5
REMEMBER_FAILURE_SECONDS = 10.0
_failed_at: dict[tuple[str, int], float] = {}


# ------------------------------------------------------------------------------ names


def resolve_model(name: str) -> str:
    """What to hand to `from_pretrained` for the model called `name`.

    In this order: a folder of that name (also one relative to this repository's root, as
    `demo/large`); `$BILD_MODELS_ROOT/<name>`; the hub id itself where the hub can be reached; its
    folder in the hub's cache where it cannot.

    Raises:
        BildError: no such folder or id, or a folder without weights; named, with the way out.
    """
    return _resolve(name, "model", _weights_problem, ("config.json",))


def resolve_tokenizer(name: str) -> str:
    """What to hand to `AutoTokenizer.from_pretrained`; the order of `resolve_model`.

    Raises:
        BildError: no such folder or id, or a folder without a tokenizer.
    """
    return _resolve(name, "tokenizer", _tokenizer_problem, TOKENIZER_FILES)


def resolve_revision(path_or_id: str) -> str | None:
    """The commit of a checkpoint that came from the hub; None for any other folder.

    Args:
        path_or_id: a folder of the hub's cache, or a hub id that has been loaded (before that
            its commit is not known and the answer is None).
    """
    path = Path(path_or_id).expanduser()
    if not path.is_dir():
        try:
            found = _cached_snapshot(path_or_id, ("config.json", *TOKENIZER_FILES))
        except HFValidationError:
            found = None
        if found is None:
            return None
        path = found
    if path.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", path.name):
        return path.name
    return None


def loaded_folder(path_or_id: str) -> Path:
    """The folder of a checkpoint that has been loaded: itself, or its place in the hub's cache.

    Raises:
        BildError: a hub id that has not been loaded.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    found = _cached_snapshot(path_or_id, ("config.json", *TOKENIZER_FILES))
    if found is None:
        raise BildError(f"{path_or_id!r} is not in the local cache; load it first")
    return found


def fingerprint(folder: str | Path, patterns: Sequence[str] = WEIGHT_FILES) -> str:
    """SHA-256 over the names and contents of some files of a folder, in order of name.

    Args:
        folder: of a checkpoint.
        patterns: of the files: those of its weights, or `TOKENIZER_FILES`.

    Raises:
        BildError: no such folder, or no such file in it.
    """
    files = sorted({f for pattern in patterns for f in Path(folder).glob(pattern)})
    if not files:
        raise BildError(
            f"{str(folder)!r} holds nothing to fingerprint ({', '.join(patterns)}); give the "
            "folder of a checkpoint"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _resolve(
    name: str,
    kind: str,
    problem: Callable[[Path], str | None],
    cached_files: tuple[str, ...],
) -> str:
    folder = _local_folder(name)
    if folder is not None:
        fault = problem(folder)
        if fault is not None:
            raise BildError(f"{kind} folder {str(folder)!r} {fault}")
        return str(folder)
    if Path(name).expanduser().is_file():
        raise BildError(f"{kind} {name!r} is a file; give the folder it lies in")
    if _is_path(name):
        raise BildError(f"{kind} folder {name!r} does not exist; give a folder or a hub id")
    try:
        snapshot = _cached_snapshot(name, cached_files)
    except HFValidationError:
        raise BildError(
            f"{kind} {name!r} is neither a folder nor a hub id; give a folder or owner/name"
        ) from None
    if hub_reachable():
        return name
    if snapshot is not None and problem(snapshot) is None:
        return str(snapshot)
    root = mirror_root("BILD_MODELS_ROOT")
    mirror = "BILD_MODELS_ROOT" if root is None else f"BILD_MODELS_ROOT ({root})"
    raise BildError(
        f"{kind} {name!r} is neither in the local cache nor under {mirror}, and "
        f"{constants.ENDPOINT} cannot be reached: connect to the network, or set BILD_MODELS_ROOT "
        f"to a folder that holds {name}"
    )


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
    return next((c for c in candidates if c.is_dir()), None)


def _is_path(name: str) -> bool:
    """Whether a name can only mean a folder: hub ids are `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


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


def _weights_problem(folder: Path) -> str | None:
    """Why a folder cannot be loaded as a model; None when it can."""
    if not (folder / "config.json").is_file():
        return "holds no config.json; give the folder of a transformers checkpoint"
    files = [folder / name for name in SINGLE_WEIGHTS if (folder / name).is_file()]
    for pattern in WEIGHT_INDEXES:
        for index in sorted(folder.glob(pattern)):
            try:
                shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError, TypeError):
                return f"holds a {index.name} that cannot be read; copy the checkpoint again"
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                return f"lacks {missing[0]}, named in {index.name}; copy the checkpoint again"
            files += [folder / shard for shard in shards]
    if not files:
        return (
            "holds no weights (model.safetensors, pytorch_model.bin or an index of one); "
            "copy the whole checkpoint"
        )
    for file in files:
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"holds a Git LFS pointer as {file.name}; run git lfs pull there"
    return None


def _tokenizer_problem(folder: Path) -> str | None:
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return f"holds no tokenizer ({', '.join(TOKENIZER_FILES)}); give --tokenizer"


# ------------------------------------------------------------------------------ the hub


def hub_reachable() -> bool:
    """Whether the hub's endpoint (or the proxy before it) takes a connection; at most 1.5 seconds.

    `HF_HUB_OFFLINE=1` counts as unreachable. A failure is remembered for ten seconds, so that
    asking for two models, a tokenizer and a data set waits once.
    """
    if constants.HF_HUB_OFFLINE or _is_true(os.environ.get("HF_HUB_OFFLINE", "")):
        return False
    address = _address(constants.ENDPOINT)
    failed = _failed_at.get(address)
    if failed is not None and time.monotonic() - failed < REMEMBER_FAILURE_SECONDS:
        return False
    if _connects(address):
        _failed_at.pop(address, None)
        return True
    _failed_at[address] = time.monotonic()
    return False


def _address(endpoint: str) -> tuple[str, int]:
    """(host, port) to connect to for an endpoint: its own, or its proxy's."""
    url = urllib.parse.urlsplit(endpoint)
    host = url.hostname or ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme, proxies.get("all"))
    if proxy and not urllib.request.proxy_bypass(host):
        url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    default = 443 if url.scheme == "https" else 80
    return url.hostname or "", url.port if url.port is not None else default


def _connects(address: tuple[str, int]) -> bool:
    """Whether a TCP connection comes about. In a thread, since a name look-up has no time limit."""
    connected = threading.Event()

    def attempt() -> None:
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
        except OSError:
            return
        connected.set()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return connected.is_set()


def _cached_snapshot(name: str, files: tuple[str, ...]) -> Path | None:
    """The folder of a hub id in the hub's cache, if one of `files` is there.

    Raises:
        HFValidationError: a name that cannot be a hub id.
    """
    paths = [try_to_load_from_cache(name, file) for file in files]
    return next((Path(p).parent for p in paths if isinstance(p, str)), None)


def _is_true(value: str) -> bool:
    return value.upper() in {"1", "ON", "YES", "TRUE"}
