"""Checkpoints by name: folders, mirrors, the hub's cache, the hub, and a hub that is not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import AT_ONCE
from hub_server import HubServer
from huggingface_hub import close_session, constants

from bild.checkpoints import names
from bild.checkpoints.names import (
    PUBLISHED,
    REPOSITORY_ROOT,
    Checkpoint,
    mirror_root,
    resolve_model,
    resolve_tokenizer,
)
from bild.errors import BildError
from bild.tasks.registry import TASKS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "kssteven/T5-small-xsum"
NOWHERE = "http://127.0.0.1:9"


def use_hub(monkeypatch, url):
    """Let the hub's clients in this process ask an address; elsewhere HF_ENDPOINT does that."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No hub, an empty cache, no mirror, and an empty working folder."""
    use_hub(monkeypatch, NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("BILD_MODELS_ROOT", "BILD_HUB_TIMEOUT", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    close_session()  # a client keeps the proxies it began with
    yield
    close_session()


@pytest.fixture
def hub(monkeypatch):
    """A hub on the loopback interface, empty."""
    with HubServer() as server:
        use_hub(monkeypatch, server.url)
        yield server


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def checkpoint(folder):
    return write(folder, config__json="{}", model__safetensors="weights")


def cached(tmp_path, commit=COMMIT, **files):
    """A folder of the hub's cache, as a download leaves it."""
    repo = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}"
    write(repo / "refs", main=commit)
    return write(repo / "snapshots" / commit, **files)


# ------------------------------------------------------------------------------ folders


def test_a_folder_is_itself(tmp_path):
    folder = checkpoint(tmp_path / "model")
    assert resolve_model(str(folder)) == Checkpoint(str(folder), folder, None)


def test_a_name_may_be_a_path(tmp_path):
    folder = checkpoint(tmp_path / "model")
    write(folder, tokenizer__json="{}")
    for resolve in (resolve_model, resolve_tokenizer):
        assert resolve(folder) == resolve(str(folder)) == Checkpoint(str(folder), folder, None)
    with pytest.raises(BildError, match=r"folder '.*none' does not exist"):
        resolve_model(tmp_path / "none")


@pytest.mark.parametrize("name", [None, 3, b"model", ["model"]])
@pytest.mark.parametrize("resolve", [resolve_model, resolve_tokenizer])
def test_a_name_that_is_none(resolve, name):
    with pytest.raises(BildError, match="must be named by a folder or a hub id, got"):
        resolve(name)


def test_a_relative_folder_is_itself():
    checkpoint(Path("mine/large"))
    assert resolve_model("mine/large") == Checkpoint("mine/large", Path("mine/large"), None)


def test_a_folder_of_this_repository_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(names, "REPOSITORY_ROOT", tmp_path)
    folder = checkpoint(tmp_path / "demo" / "large")
    assert resolve_model("demo/large") == Checkpoint("demo/large", folder, None)


def test_repository_root_holds_the_package():
    assert (REPOSITORY_ROOT / "bild" / "checkpoints" / "names.py").is_file()


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
    assert resolve_model(str(folder), allow_pickle=True) == Checkpoint(str(folder), folder, None)
    if any(name.endswith("__bin") for name in files):
        with pytest.raises(BildError, match=r"a pickle, which can hold code.*--allow-pickle"):
            resolve_model(str(folder))


def test_the_environment_may_allow_pickles(tmp_path, monkeypatch):
    folder = write(tmp_path / "model", config__json="{}", pytorch_model__bin="x")
    monkeypatch.setenv("BILD_ALLOW_PICKLE", "0")
    with pytest.raises(BildError, match="a pickle"):
        resolve_model(str(folder))
    monkeypatch.setenv("BILD_ALLOW_PICKLE", "1")
    assert resolve_model(str(folder)).path == folder


def test_the_checkpoints_that_tasks_name_are_read_as_they_were_published():
    tasks = TASKS.values()
    named = {n for t in tasks for n in (t.large, t.small, t.aligned, t.drafter) if n is not None}
    assert {name for name in named if not name.startswith("demo/")} == PUBLISHED


@pytest.mark.parametrize("there", ["on the hub", "in the hub's cache"])
def test_a_pickle_on_the_hub_is_not_fetched(tmp_path, hub, there):
    store = write(tmp_path / "store", config__json="{}", pytorch_model__bin="x")
    hub.add("models", "somebody/model", store)
    if there == "in the hub's cache":
        resolve_model("somebody/model", allow_pickle=True)
    with pytest.raises(BildError, match=f"model' {there} has its weights in pytorch_model.bin"):
        resolve_model("somebody/model")
    if there == "on the hub":
        assert [r for r in hub.requests if "/resolve/" in r] == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no weights"),
        ({"optimizer__pt": "x"}, "holds no weights"),
        ({"adapter_config__json": "{}", "model__safetensors": "x"}, "holds an adapter"),
        (
            {"model__safetensors__index__json": index("a.safetensors", "b.safetensors")},
            "lacks a.safetensors, named in model.safetensors.index.json",
        ),
        (
            {"model__safetensors__index__json": index("../a.safetensors")},
            "index.json that cannot be read",
        ),
        ({"model__safetensors__index__json": index(3)}, "index.json that cannot be read"),
        ({"model__safetensors__index__json": index()}, "index.json that cannot be read"),
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


@pytest.mark.parametrize("name", ["x" * 300, "/" + "x" * 300])
def test_a_name_that_is_too_long_for_a_folder(name):
    with pytest.raises(BildError, match=r"x{50}.* cannot be a folder: File name too long"):
        resolve_model(name)


def test_a_checkpoint_is_not_looked_for_again(tmp_path):
    found = Checkpoint("anything", tmp_path / "nowhere", None)
    assert resolve_model(found) is found


# ------------------------------------------------------------------------------ mirror


def test_mirror_comes_before_the_hub(monkeypatch, tmp_path, hub):
    monkeypatch.setenv("BILD_MODELS_ROOT", str(tmp_path / "mirror"))
    folder = checkpoint(tmp_path / "mirror" / NAME)
    assert resolve_model(NAME) == Checkpoint(NAME, folder, None)
    assert hub.requests == []


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


def test_an_empty_variable_is_unset(monkeypatch):
    monkeypatch.setenv("BILD_MODELS_ROOT", "")
    assert mirror_root("BILD_MODELS_ROOT") is None


# ------------------------------------------------------------------------------ tokenizers


@pytest.mark.parametrize("file", ["tokenizer__json", "spiece__model", "vocab__json", "source__spm"])
def test_tokenizer_folder_needs_no_weights(tmp_path, file):
    folder = write(tmp_path / "tokenizer", **{file: "x"})
    assert resolve_tokenizer(str(folder)) == Checkpoint(str(folder), folder, None)


def test_tokenizer_folder_without_tokenizer(tmp_path):
    folder = checkpoint(tmp_path / "model")
    for name in (str(folder), resolve_model(str(folder))):
        with pytest.raises(BildError, match=r"holds no tokenizer.*give --tokenizer"):
            resolve_tokenizer(name)


def test_tokenizer_beside_a_model(tmp_path):
    model = resolve_model(str(checkpoint(write(tmp_path / "model", spiece__model="x"))))
    assert resolve_tokenizer(model) is model


# ------------------------------------------------------------------------------ the cache


def test_cached_model_is_read_without_a_request(tmp_path, hub):
    folder = cached(tmp_path, config__json="{}", model__safetensors="x")
    assert resolve_model(NAME) == Checkpoint(NAME, folder, COMMIT)
    assert resolve_model(f"{NAME}@{COMMIT}") == Checkpoint(NAME, folder, COMMIT)
    assert hub.requests == []


def test_cached_tokenizer_is_read_without_a_request(tmp_path, hub):
    folder = cached(tmp_path, spiece__model="x")
    assert resolve_tokenizer(NAME) == Checkpoint(NAME, folder, COMMIT)
    assert hub.requests == []


def test_the_folder_of_a_cached_model_keeps_its_commit(tmp_path):
    folder = cached(tmp_path, config__json="{}", model__safetensors="x")
    assert resolve_model(str(folder)).revision == COMMIT


def test_a_folder_that_is_called_like_a_commit_is_none(tmp_path):
    assert resolve_model(str(checkpoint(tmp_path / COMMIT))).revision is None


def test_half_a_download_is_not_a_model(tmp_path):
    cached(tmp_path, config__json="{}")
    with pytest.raises(BildError, match="cannot be reached"):
        resolve_model(NAME)


def test_another_revision_is_never_taken_for_the_one_asked_for(tmp_path):
    cached(tmp_path, config__json="{}", model__safetensors="x")
    for revision in (COMMIT.replace("0", "f"), "v2"):
        with pytest.raises(BildError, match=f"model '{NAME}' at {revision} is neither"):
            resolve_model(f"{NAME}@{revision}")


def test_a_folder_has_no_revisions(monkeypatch, tmp_path):
    monkeypatch.setenv("BILD_MODELS_ROOT", str(tmp_path))
    checkpoint(tmp_path / NAME)
    with pytest.raises(BildError, match=r"asked for at a revision, but .* is a folder"):
        resolve_model(f"{NAME}@{COMMIT}")
    with pytest.raises(BildError, match="names no revision after the @"):
        resolve_model(f"{NAME}@")


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    folder = checkpoint(tmp_path / "model@home")
    assert resolve_model(str(folder)).path == folder


# ------------------------------------------------------------------------------ the hub


def repository(folder):
    """What a repository may hold: weights in every format, and more."""
    write(folder, config__json="{}", generation_config__json="{}", model__safetensors="weights")
    write(folder, pytorch_model__bin="other weights", tf_model__h5="x", README__md="x")
    return write(folder, spiece__model="x", tokenizer_config__json="{}", training_args__bin="x")


FETCHED = ["config.json", "generation_config.json", "model.safetensors", "spiece.model",
           "tokenizer_config.json"]  # fmt: skip


def test_a_model_is_downloaded_once_with_what_belongs_to_it(tmp_path, hub):
    commit = hub.add("models", NAME, repository(tmp_path / "store"))
    found = resolve_model(NAME)
    assert (found.name, found.revision, found.path.name) == (NAME, commit, commit)
    assert sorted(p.name for p in found.path.iterdir()) == FETCHED
    asked = len(hub.requests)
    assert resolve_model(NAME) == found
    assert resolve_tokenizer(NAME) == found
    assert len(hub.requests) == asked
    hub.stop()
    assert resolve_model(NAME) == found


def test_a_tokenizer_is_downloaded_without_weights(tmp_path, hub):
    hub.add("models", NAME, repository(tmp_path / "store"))
    found = resolve_tokenizer(NAME)
    there = sorted(p.name for p in found.path.iterdir())
    assert there == ["config.json", "spiece.model", "tokenizer_config.json"]
    model = resolve_model(NAME)  # the rest of it
    assert model == found
    assert sorted(p.name for p in model.path.iterdir()) == FETCHED


def test_a_model_that_others_have_cached_gets_its_tokenizer(tmp_path, hub):
    commit = hub.add("models", NAME, repository(tmp_path / "store"))
    cached(tmp_path, commit=commit, config__json="{}", model__safetensors="x")
    model = resolve_model(NAME)
    assert hub.requests == []
    assert resolve_tokenizer(model) == model
    assert (model.path / "spiece.model").is_file()


def test_shards_are_downloaded_with_their_index(tmp_path, hub):
    shards = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    store = write(
        tmp_path / "store", config__json="{}", pytorch_model__bin__index__json=index(*shards)
    )
    for shard in shards:
        (store / shard).write_text("x")
    hub.add("models", NAME, store)
    there = sorted(p.name for p in resolve_model(NAME).path.iterdir())
    assert there == ["config.json", *shards, "pytorch_model.bin.index.json"]


def test_a_revision_is_pinned_by_its_name(tmp_path, hub):
    commits = {
        revision: hub.add("models", NAME, checkpoint(tmp_path / revision), revision)
        for revision in ("main", "v2")
    }
    assert resolve_model(f"{NAME}@v2").revision == commits["v2"]
    assert resolve_model(NAME).revision == commits["main"]
    assert resolve_model(f"{NAME}@{commits['v2']}").revision == commits["v2"]


def test_what_the_hub_says_is_told(tmp_path, hub):
    hub.add("models", NAME, write(tmp_path / "store", README__md="x"))
    hub.add("models", "mine/config", write(tmp_path / "config", config__json="{}"))
    for name, message in (
        ("nobody/nothing", "does not give it .there is none of that name, or not without a login"),
        (f"{NAME}@v9", "at v9 .* does not give it .it has no such revision"),
        (NAME, "does not give it .revision 'main' has no such files"),
        ("mine/config", "model 'mine/config' on the hub holds no weights"),
    ):
        with pytest.raises(BildError, match=message) as error:
            resolve_model(name)
        assert "\n" not in str(error.value)


def test_a_failure_in_mid_download_is_told(tmp_path, hub):
    hub.add("models", NAME, repository(tmp_path / "store"))
    hub.failing = "spiece.model"
    with pytest.raises(BildError, match=r"does not give it \(HfHubHTTPError: .*403"):
        resolve_model(NAME)


def test_offline_mode(monkeypatch, hub):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BildError, match=r"cannot be reached \(HF_HUB_OFFLINE is set\)"):
        resolve_model(NAME)
    assert hub.requests == []


@pytest.mark.parametrize("resolve", [resolve_model, resolve_tokenizer])
def test_no_mirror_no_cache_no_network(monkeypatch, tmp_path, resolve):
    monkeypatch.setenv("BILD_MODELS_ROOT", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(BildError) as error:
        resolve(NAME)
    assert time.perf_counter() - start < 4.5
    for part in (NAME, NOWHERE, str(tmp_path), "BILD_MODELS_ROOT", "connect to the network"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_slow_network_is_waited_for(tmp_path, hub):
    hub.add("models", NAME, checkpoint(tmp_path / "store"))
    hub.delays = [2.0]
    assert resolve_model(NAME).name == NAME


def test_the_time_limit_is_the_users(monkeypatch, tmp_path, hub):
    hub.add("models", NAME, checkpoint(tmp_path / "store"))
    hub.delays = [5.0]
    monkeypatch.setenv("BILD_HUB_TIMEOUT", "0.2")
    start = time.perf_counter()
    with pytest.raises(BildError, match=r"cannot be reached \((no answer within 0\.2|ReadTimeout)"):
        resolve_model(NAME)
    assert time.perf_counter() - start < 4.5


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none(monkeypatch, value):
    monkeypatch.setenv("BILD_HUB_TIMEOUT", value)
    with pytest.raises(BildError, match=f"BILD_HUB_TIMEOUT must be .* above 0, got '{value}'"):
        resolve_model(NAME)


def test_a_name_look_up_that_takes_for_ever(monkeypatch):
    """It has no time limit of its own, but may not hold up the answer."""
    use_hub(monkeypatch, "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))
    monkeypatch.setenv("BILD_HUB_TIMEOUT", "0.3")
    start = time.perf_counter()
    with pytest.raises(BildError, match=r"no answer within 0\.3 seconds; BILD_HUB_TIMEOUT"):
        resolve_model(NAME)
    assert time.perf_counter() - start < 4.5


@pytest.mark.parametrize("where", ["endpoint", "proxy"])
def test_an_address_that_is_none(monkeypatch, where):
    if where == "endpoint":
        use_hub(monkeypatch, "http://localhost:port")
    else:
        use_hub(monkeypatch, "http://hub.invalid")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:port")
    with pytest.raises(BildError, match=r"cannot be reached \(\w+: .*port") as error:
        resolve_model(NAME)
    assert "\n" not in str(error.value)


def test_a_proxy_stands_in_for_the_hub(monkeypatch, tmp_path, hub):
    hub.add("models", NAME, checkpoint(tmp_path / "store"))
    proxy = hub.url
    use_hub(monkeypatch, "http://hub.invalid")
    monkeypatch.setenv("http_proxy", proxy)
    assert resolve_model(NAME).name == NAME
    assert any("http://hub.invalid/" in request for request in hub.requests)


def test_in_a_process_of_its_own(tmp_path):
    """With the variables a user would set, from import to message."""
    code = (
        "import time; from bild.checkpoints.names import resolve_model\n"
        "start = time.perf_counter()\n"
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
    assert float(seconds) < AT_ONCE
