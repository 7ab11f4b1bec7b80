"""Checkpoints by name: folders, mirrors, the hub's cache, and a hub that is not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from bild.checkpoints import hub
from bild.checkpoints.hub import (
    REPOSITORY_ROOT,
    fingerprint,
    hub_reachable,
    resolve_model,
    resolve_revision,
    resolve_tokenizer,
)
from bild.errors import BildError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "kssteven/T5-small-xsum"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No hub, an empty cache, no mirror, and an empty working folder."""
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_failed_at", {})
    for name in ("BILD_MODELS_ROOT", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def listener(monkeypatch):
    """A hub that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def checkpoint(folder):
    return write(folder, config__json="{}", model__safetensors="weights")


def cached(tmp_path, **files):
    """A folder of the hub's cache, as a download leaves it."""
    repo = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}"
    write(repo / "refs", main=COMMIT)
    return write(repo / "snapshots" / COMMIT, **files)


# ------------------------------------------------------------------------------ folders


def test_a_folder_is_itself(tmp_path):
    folder = checkpoint(tmp_path / "model")
    assert resolve_model(str(folder)) == str(folder)


def test_a_relative_folder_is_itself():
    checkpoint(Path("mine/large"))
    assert resolve_model("mine/large") == "mine/large"


def test_a_folder_of_this_repository_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "REPOSITORY_ROOT", tmp_path)
    folder = checkpoint(tmp_path / "demo" / "large")
    assert resolve_model("demo/large") == str(folder)


def test_repository_root_holds_the_package():
    assert (REPOSITORY_ROOT / "bild" / "checkpoints" / "hub.py").is_file()


def index(*shards):
    return json.dumps({"weight_map": {f"layer.{i}": shard for i, shard in enumerate(shards)}})


@pytest.mark.parametrize(
    "files",
    [
        {"model__safetensors": "x"},
        {"pytorch_model__bin": "x"},
        {"model__safetensors__index__json": index("a.safetensors"), "a__safetensors": "x"},
        {"pytorch_model__bin__index__json": index("a.bin", "b.bin"), "a__bin": "x", "b__bin": "x"},
    ],
)
def test_all_forms_of_weights(tmp_path, files):
    folder = write(tmp_path / "model", config__json="{}", **files)
    assert resolve_model(str(folder)) == str(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no weights"),
        ({"optimizer__pt": "x"}, "holds no weights"),
        (
            {"model__safetensors__index__json": index("a.safetensors", "b.safetensors")},
            "lacks a.safetensors, named in model.safetensors.index.json",
        ),
        ({"model__safetensors__index__json": "{}"}, "index.json that cannot be read"),
        ({"pytorch_model__bin__index__json": "[1"}, "index.json that cannot be read"),
        (
            {"model__safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"},
            "Git LFS pointer as model.safetensors; run git lfs pull",
        ),
    ],
)
def test_folder_without_weights_is_named(tmp_path, files, message):
    folder = write(tmp_path / "model", config__json="{}", **files)
    with pytest.raises(BildError) as error:
        resolve_model(str(folder))
    assert f"model folder {str(folder)!r}" in str(error.value)
    assert message in str(error.value)


def test_folder_without_configuration(tmp_path):
    folder = write(tmp_path / "model", model__safetensors="x")
    with pytest.raises(BildError, match=r"holds no config\.json"):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/no-such-folder", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(name):
    with pytest.raises(BildError, match=f"model folder '{name}' does not exist"):
        resolve_model(name)


def test_a_file_is_not_a_folder(tmp_path):
    write(tmp_path, model__safetensors="x")
    with pytest.raises(BildError, match="is a file; give the folder it lies in"):
        resolve_model(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name(name):
    with pytest.raises(BildError, match="named by a folder or a hub id"):
        resolve_model(name)


def test_a_name_that_cannot_be_an_id():
    with pytest.raises(BildError, match="'T5 small' is neither a folder nor a hub id"):
        resolve_model("T5 small")


# ------------------------------------------------------------------------------ mirror


def test_mirror(monkeypatch, tmp_path):
    monkeypatch.setenv("BILD_MODELS_ROOT", str(tmp_path / "mirror"))
    folder = checkpoint(tmp_path / "mirror" / NAME)
    assert resolve_model(NAME) == str(folder)


def test_mirror_is_tried_before_the_hub(monkeypatch, tmp_path, listener):
    monkeypatch.setenv("BILD_MODELS_ROOT", str(tmp_path / "mirror"))
    folder = checkpoint(tmp_path / "mirror" / NAME)
    assert resolve_model(NAME) == str(folder)
    assert resolve_model("google/mt5-small") == "google/mt5-small"


def test_mirrored_folder_without_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("BILD_MODELS_ROOT", str(tmp_path / "mirror"))
    folder = write(tmp_path / "mirror" / NAME, config__json="{}")
    with pytest.raises(BildError, match="holds no weights") as error:
        resolve_model(NAME)
    assert str(folder) in str(error.value)


def test_mirror_that_is_not_a_folder(monkeypatch):
    monkeypatch.setenv("BILD_MODELS_ROOT", "/no/such/mirror")
    with pytest.raises(BildError, match="BILD_MODELS_ROOT is '/no/such/mirror', which is not"):
        resolve_model(NAME)


def test_an_empty_variable_is_unset(monkeypatch, listener):
    monkeypatch.setenv("BILD_MODELS_ROOT", "")
    assert resolve_model(NAME) == NAME


# ------------------------------------------------------------------------------ tokenizers


@pytest.mark.parametrize("file", ["tokenizer__json", "spiece__model", "tokenizer_config__json"])
def test_tokenizer_folder_needs_no_weights(tmp_path, file):
    folder = write(tmp_path / "tokenizer", **{file: "x"})
    assert resolve_tokenizer(str(folder)) == str(folder)


def test_tokenizer_folder_without_tokenizer(tmp_path):
    folder = checkpoint(tmp_path / "model")
    with pytest.raises(BildError, match=r"holds no tokenizer.*give --tokenizer"):
        resolve_tokenizer(str(folder))


def test_tokenizer_from_the_cache(tmp_path):
    folder = cached(tmp_path, spiece__model="x")
    assert resolve_tokenizer(NAME) == str(folder)


# ------------------------------------------------------------------------------ the hub


def test_reachable_hub(listener):
    assert hub_reachable()
    assert resolve_model(NAME) == NAME
    assert resolve_tokenizer(NAME) == NAME


@pytest.mark.parametrize("where", ["constant", "environment"])
def test_offline_mode_counts_as_unreachable(monkeypatch, listener, where):
    if where == "constant":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_reachable()


def test_cached_model_without_network(tmp_path):
    folder = cached(tmp_path, config__json="{}", model__safetensors="x")
    assert resolve_model(NAME) == str(folder)


def test_half_a_download_is_not_a_model(tmp_path):
    cached(tmp_path, config__json="{}")
    with pytest.raises(BildError, match="cannot be reached"):
        resolve_model(NAME)


@pytest.mark.parametrize("resolve", [resolve_model, resolve_tokenizer])
def test_no_mirror_no_cache_no_network(monkeypatch, tmp_path, resolve):
    monkeypatch.setenv("BILD_MODELS_ROOT", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(BildError) as error:
        resolve(NAME)
    assert time.perf_counter() - start < 3
    for part in (NAME, NOWHERE, str(tmp_path), "BILD_MODELS_ROOT", "connect to the network"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_that_swallows_everything(monkeypatch):
    """Also a name look-up, which takes no time limit, may not hold up the answer."""
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(20))
    start = time.perf_counter()
    for _ in range(3):  # a failure is remembered
        with pytest.raises(BildError, match="cannot be reached"):
            resolve_model(NAME)
    assert time.perf_counter() - start < 3


def test_a_proxy_stands_in_for_the_hub(monkeypatch, listener):
    port = listener.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    assert not hub_reachable()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert hub_reachable()
    monkeypatch.setenv("no_proxy", "hub.invalid")
    assert not hub_reachable()


def test_in_a_process_of_its_own(tmp_path):
    """With the variables a user would set, from import to message."""
    code = (
        "import time; from bild.checkpoints.hub import resolve_model; start = time.perf_counter()\n"
        "try: resolve_model('kssteven/T5-small-xsum')\n"
        "except ValueError as error: print(error)\n"
        "print(time.perf_counter() - start)"
    )
    env = {
        **os.environ,
        "HF_ENDPOINT": NOWHERE,
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY_ROOT),
        "OMP_NUM_THREADS": "1",
    }
    env.pop("BILD_MODELS_ROOT", None)
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    message, seconds = run.stdout.splitlines()
    assert NAME in message
    assert NOWHERE in message
    assert float(seconds) < 3


# ------------------------------------------------------------------------------ revisions


def test_revision_of_a_cached_id_and_of_its_folder(tmp_path):
    folder = cached(tmp_path, config__json="{}")
    assert resolve_revision(NAME) == COMMIT
    assert resolve_revision(str(folder)) == COMMIT


def test_no_revision(tmp_path):
    assert resolve_revision(str(checkpoint(tmp_path / "model"))) is None
    assert resolve_revision(str(checkpoint(tmp_path / COMMIT))) is None
    assert resolve_revision("never/loaded") is None
    assert resolve_revision("/no/such/folder") is None


def test_fingerprint_follows_the_weights(tmp_path):
    folder = checkpoint(tmp_path / "a")
    first = fingerprint(folder)
    assert len(first) == 64
    assert fingerprint(checkpoint(tmp_path / "b")) == first
    write(folder, config__json='{"other": 1}')
    assert fingerprint(folder) == first
    write(folder, model__safetensors="other weights")
    assert fingerprint(folder) != first


def test_fingerprint_of_nothing(tmp_path):
    with pytest.raises(BildError, match="holds nothing to fingerprint"):
        fingerprint(tmp_path)
