"""The hub path against a hub on the loopback interface: ids, revisions, files, cache, refusals.

Nothing here may reach another address: every process is watched (`WATCH`).
"""

from __future__ import annotations

import os
import sys
from functools import partial
from types import SimpleNamespace

import datasets
import pytest
from commands import AT_ONCE, NOWHERE, ROOT, run_command, run_two_at_a_time
from hub_server import PARQUET_BRANCH, HubServer
from mirror import examples, save_checkpoint, save_mt5_tokenizer, save_t5_tokenizer, tiny_pair

from bild.evaluation.comparable import comparable
from bild.tasks.data import checksum
from bild.tasks.reading import Example
from bild.tasks.registry import TASKS

IWSLT, CNNDM = TASKS["iwslt2017"], TASKS["cnndm"]

# Python runs this first of all: connections and look-ups beyond this machine fail and are noted.
WATCH = """
import os, sys
def watch(event, arguments):
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    host = arguments[1] if event == "socket.connect" else arguments[0]
    host = host[0] if isinstance(host, tuple) else host
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in ("127.0.0.1", "::1", "localhost"):
        return
    with open(os.environ["STRAY_REQUESTS"], "a") as log:
        log.write(f"{event} {host}\\n")
    raise OSError(f"no way to {host} in this test")
sys.addaudithook(watch)
"""


def evaluate(home, url, *arguments, **more):
    """scripts/run_eval.py in a fresh process that knows one hub and, but for `more`, no mirror.

    What it asked of other addresses stands in `home`/stray afterwards.
    """
    site = home / "site"
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(WATCH)
    watched = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "STRAY_REQUESTS": str(home / "stray")}
    command = [sys.executable, ROOT / "scripts" / "run_eval.py", *arguments]
    return run_command(command, home, {"HF_ENDPOINT": url, **watched, **more})


def stray_requests(home):
    """What processes with this home asked of addresses beyond this machine."""
    return (home / "stray").read_text().splitlines() if (home / "stray").exists() else []


def test_stray_requests_are_seen(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    code = "import urllib.request as u; u.urlopen('http://elsewhere.example/', timeout=1)"
    more = {"PYTHONPATH": str(tmp_path / "site"), "STRAY_REQUESTS": str(tmp_path / "stray")}
    assert run_command([sys.executable, "-c", code], tmp_path, more).code != 0
    assert stray_requests(tmp_path) == ["socket.getaddrinfo elsewhere.example"]


def serve_iwslt(store, hub):
    """mT5 checkpoints as pytorch_model.bin; the large one has twelve rows of padding."""
    tokens = save_mt5_tokenizer(store / "tokenizer")
    commits = {"tokenizer": hub.add("models", IWSLT.tokenizer, store / "tokenizer")}
    for role, model in tiny_pair("iwslt2017", tokens, 12, 0).items():
        folder = save_checkpoint(model, store / role, binary=True)
        commits[role] = hub.add("models", getattr(IWSLT, role), folder)
    rows = [{"translation": {"de": s, "en": t}} for s, t in examples("iwslt2017")]
    write_parquet(rows[:3], store / "data" / IWSLT.data.config / "validation" / "0000.parquet")
    write_parquet(rows[3:], store / "data" / IWSLT.data.config / "validation" / "0001.parquet")
    write_parquet(rows[:1], store / "data" / IWSLT.data.config / "test" / "0000.parquet")
    commits["data"] = hub.add("datasets", IWSLT.data.path, store / "data", PARQUET_BRANCH)
    # The repository itself holds a loading script alone, as the real one.
    (store / "script").mkdir()
    (store / "script" / "iwslt2017.py").write_text("raise SystemExit('never run')\n")
    hub.add("datasets", IWSLT.data.path, store / "script")
    return commits, tokens


def serve_cnndm(store, hub):
    """T5 checkpoints with 28 rows of padding; data of two configurations."""
    tokens = save_t5_tokenizer(store / "tokenizer")
    commits = {"tokenizer": hub.add("models", CNNDM.tokenizer, store / "tokenizer")}
    for role, model in tiny_pair("cnndm", tokens, 28, 28).items():
        folder = save_checkpoint(model, store / role, binary=role == "aligned")
        commits[role] = hub.add("models", getattr(CNNDM, role), folder)
    pairs = enumerate(examples("cnndm"))
    rows = [{"article": s, "highlights": t, "id": str(i)} for i, (s, t) in pairs]
    for config in ("1.0.0", "3.0.0"):
        for split in ("train", "validation"):
            here = rows if (config, split) == ("3.0.0", "validation") else rows[:1]
            write_parquet(here, store / "data" / config / split / "0000.parquet")
    commits["data"] = hub.add("datasets", CNNDM.data.path, store / "data", PARQUET_BRANCH)
    return commits, tokens


def write_parquet(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)


COMMANDS = {
    "iwslt2017": ("iwslt2017", "unaligned", "--max-new-tokens", 12),
    "cnndm": ("cnndm", "aligned", "--max-new-tokens", 12),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each task once with its hub and once more when the hub is gone."""

    def chain(task, serve):
        home = tmp_path_factory.mktemp(task)
        with HubServer() as hub:
            commits, tokens = serve(home / "store", hub)
            online = evaluate(home, hub.url, *COMMANDS[task])
        offline = evaluate(home, hub.url, *COMMANDS[task])
        return SimpleNamespace(
            home=home, online=online, offline=offline, hub=hub, commits=commits, tokens=tokens
        )

    serve = {"iwslt2017": serve_iwslt, "cnndm": serve_cnndm}
    return run_two_at_a_time({task: partial(chain, task, serve[task]) for task in COMMANDS})


@pytest.fixture(params=["online", "offline"])
def which(request):
    return request.param


@pytest.fixture(params=COMMANDS)
def task(request):
    return request.param


def test_the_published_ids_are_evaluated(runs, task, which):
    done = getattr(runs[task], which)
    pairs = list(examples(task))
    assert [(s["source"], s["reference"]) for s in done.samples()] == pairs
    assert all(list(s["arms"]) == ["vanilla", "bild", "small"] for s in done.samples())
    assert done.record().data.sha256 == checksum([Example(*pair) for pair in pairs])
    assert done.record().data.available == 4
    # Twelve rows more in the large model are spoken of, with the line of code below it.
    padding = ("the large model has 172 token ids", "= shared_vocab_size(large, small)")
    known = padding if task == "iwslt2017" else ()
    assert [c for c in done.complaints if not any(k in c for k in known)] == []


def test_ids_and_commits_are_recorded(runs, task, which):
    record, commits = getattr(runs[task], which).record(), runs[task].commits
    small = {"iwslt2017": "small", "cnndm": "aligned"}[task]
    models = record.models
    for model, role in ((models.large, "large"), (models.small["small"], small)):
        assert (model.id, model.revision) == (getattr(TASKS[task], role), commits[role])
    tokenizer = models.tokenizer
    assert (tokenizer.id, tokenizer.revision) == (TASKS[task].tokenizer, commits["tokenizer"])
    assert record.data.origin == TASKS[task].data.path
    assert record.data.revision == commits["data"]


def test_without_the_hub_the_cache_gives_the_same_result(runs, task):
    online, offline = runs[task].online, runs[task].offline
    assert online.outcome() == offline.outcome()
    for field in ("models", "data"):
        assert getattr(online.record(), field) == getattr(offline.record(), field), field
    for ours, theirs in zip(online.record().arms, offline.record().arms, strict=True):
        assert (ours.id, ours.quality, ours.stats) == (theirs.id, theirs.quality, theirs.stats)
    comparable(online.record(), offline.record())


def test_rows_that_pad_one_vocabulary_are_never_written(runs):
    run = runs["iwslt2017"]
    models = run.online.record().models
    sizes = [m.parameters for m in (models.large, models.small["small"])]
    assert sizes[0] > sizes[1]  # twelve rows more
    for sample in run.online.samples():
        for name, arm in sample["arms"].items():
            assert max(arm["tokens"]) < run.tokens, name


def test_binary_checkpoints_are_read_without_asking_for_a_conversion(runs):
    """For a repository without safetensors transformers would ask a service to convert it.

    It does so in a thread that the end of the process waits for.
    """
    asked = runs["iwslt2017"].hub.requests
    assert any("/resolve/" in r and "pytorch_model.bin -> 302" in r for r in asked)
    assert [r for r in asked if "/commits/" in r or "/discussions" in r] == []


def test_nothing_is_asked_of_any_other_address(runs, task):
    runs[task].online.require_success()
    assert stray_requests(runs[task].home) == []
    known = ("/api/models/", "/api/datasets/", "/resolve/", "/blobs/", "/api/agent-harnesses")
    assert all(any(k in request for k in known) for request in runs[task].hub.requests)


def test_only_what_is_needed_is_downloaded(runs, task):
    blobs = [r for r in runs[task].hub.requests if r.startswith("GET /blobs/")]
    # A tokenizer, two models, and the parquet files of the one split.
    assert len(blobs) == {"iwslt2017": 1 + 2 + 2, "cnndm": 1 + 2 + 1}[task]
    assert len(set(blobs)) == len(blobs)


# ------------------------------------------------------------------------------ refusals


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "one.jsonl"
    path.write_text('{"de": "Guten Tag.", "en": "Good day."}\n')
    return path


def refused(done, *needles):
    """Exit code 2 and one sentence that holds the needles."""
    assert done.code == 2, done.err
    assert len(done.complaints) == 1, done.err
    assert "Traceback" not in done.err
    for needle in needles:
        assert needle in done.err


def test_an_id_that_the_hub_lacks_is_named(tmp_path, data_file):
    save_mt5_tokenizer(tmp_path / "tokenizer")
    with HubServer() as hub:
        hub.add("models", IWSLT.tokenizer, tmp_path / "tokenizer")
        done = evaluate(
            tmp_path, hub.url, "iwslt2017", "vanilla", "--data-file", data_file,
            "--large", "nobody/nothing",
        )  # fmt: skip
    assert any("/nobody/nothing" in r and r.endswith(" -> 401") for r in hub.requests)
    refused(done, "'nobody/nothing'")
    assert stray_requests(tmp_path) == []


@pytest.mark.parametrize("task", ["iwslt2017", "cnndm"])
def test_with_neither_mirror_nor_network_the_end_comes_at_once(tmp_path, task):
    done = evaluate(tmp_path, NOWHERE, task, "unaligned")
    refused(done, repr(TASKS[task].large), "BILD_MODELS_ROOT", "connect to the network")
    assert done.seconds < AT_ONCE


@pytest.mark.parametrize("task", ["iwslt2017", "cnndm"])
def test_with_models_but_neither_data_nor_network_the_end_comes_at_once(tmp_path, mirror, task):
    done = evaluate(tmp_path, NOWHERE, task, "unaligned", BILD_MODELS_ROOT=str(mirror.models))
    refused(done, repr(TASKS[task].data.path), "BILD_DATA_ROOT", "connect to the network")
    assert f"{task}/validation.jsonl" in done.err
    assert done.seconds < AT_ONCE
