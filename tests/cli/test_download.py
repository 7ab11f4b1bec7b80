"""`bild download`, with a hub on the loopback interface: what it fetches, asks and refuses."""

from __future__ import annotations

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import PARQUET_BRANCH, HubServer
from huggingface_hub import close_session, constants
from test_command import bild, refused  # noqa: F401  (bild is a fixture)

from bild.checkpoints.names import resolve_model
from bild.commands import download
from bild.tasks import needs
from bild.tasks.data import load_examples
from bild.tasks.registry import get

XSUM = get("xsum")
ROLES = {"large": XSUM.large, "small": XSUM.small, "aligned": XSUM.aligned}


def use_hub(monkeypatch, url):
    """Let the hub's clients in this process ask an address; elsewhere HF_ENDPOINT does that."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def store(tmp_path):
    """What the hub holds: folder by repository; weights of sizes that tell them apart."""
    for size, name in enumerate(ROLES.values(), start=1):
        folder = tmp_path / "store" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes([size]) * 1000 * size)
        (folder / "tf_model.h5").write_bytes(b"never fetched")
    tokenizer = tmp_path / "store" / XSUM.tokenizer
    tokenizer.mkdir(parents=True)
    (tokenizer / "tokenizer.json").write_text('{"not": "read here"}')
    for split in ("train", "validation"):
        path = tmp_path / "store/data/default" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        rows = [{"document": f"{split} {i}", "summary": "s"} for i in range(3)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return tmp_path / "store"


@pytest.fixture
def hub(monkeypatch, tmp_path, store):
    """A hub that holds all that xsum needs; an empty cache, no mirrors."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("BILD_MODELS_ROOT", "BILD_DATA_ROOT", "BILD_HUB_TIMEOUT", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    close_session()  # a client keeps the proxies it began with
    with HubServer() as server:
        use_hub(monkeypatch, server.url)
        for name in (*ROLES.values(), XSUM.tokenizer):
            server.add("models", name, store / name)
        server.add("datasets", XSUM.data.path, store / "data", PARQUET_BRANCH)
        yield server
    close_session()


def fetched(hub):
    """The large files that were sent."""
    return [r for r in hub.requests if r.startswith("GET /blobs/")]


def found(done):
    """The rows of --json, by role."""
    code, out, err = done
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["fetch_bytes"] == sum(row["fetch_bytes"] for row in said["needed"])
    return {row["role"]: row for row in said["needed"]}


# ------------------------------------------------------------------------------ what it fetches


def test_a_task_is_fetched_and_then_runs_without_the_hub(bild, hub, store):  # noqa: F811
    rows = found(bild("download", "xsum", "--json"))
    assert {role: row["name"] for role, row in rows.items()} == {
        **ROLES, "tokenizer": XSUM.tokenizer, "data": XSUM.data.path,
    }  # fmt: skip
    assert all(row["here"] and len(row["revision"]) == 40 for row in rows.values())
    assert rows["large"]["fetch_bytes"] == 1000 + len("{}")
    assert rows["aligned"]["fetch_bytes"] == 3000 + len("{}")
    split = store / "data/default/validation/0000.parquet"
    assert rows["data"]["fetch_bytes"] == split.stat().st_size
    assert len(fetched(hub)) == 4  # three models' weights, one split; nothing of TensorFlow
    hub.stop()
    assert str(resolve_model(XSUM.large).path) == rows["large"]["path"]
    assert load_examples(XSUM, None).available == 3


def test_a_second_time_nothing_is_asked_or_fetched(bild, hub):  # noqa: F811
    bild("download", "xsum", "--json")
    asked = len(hub.requests)
    code, out, err = bild("download", "xsum")
    assert (code, err, len(hub.requests)) == (0, "", asked)
    assert out.count("here already") == 5
    assert "Nothing is to be fetched." in out
    assert "is here now" not in out


def test_what_a_stop_left_is_fetched_alone(bild, hub, store):  # noqa: F811
    """The hub gives the large model and then no more weights, as one that is lost in between."""
    found(bild("download", "--large", XSUM.large, "--tokenizer", XSUM.tokenizer, "--json"))
    hub.failing = "model.safetensors"
    assert "403" in refused(bild("download", "xsum", "--json"))
    hub.failing = None
    before = len(fetched(hub))
    rows = found(bild("download", "xsum", "--json"))
    assert (rows["large"]["fetch_bytes"], rows["tokenizer"]["fetch_bytes"]) == (0, 0)
    assert rows["small"]["fetch_bytes"] == 2000  # its config.json had come
    assert len(fetched(hub)) - before == 3


def test_one_mode_takes_its_small_model_alone(bild, hub):  # noqa: F811
    assert {*found(bild("download", "xsum", "aligned", "--json"))} == {
        "large", "aligned", "tokenizer", "data",
    }  # fmt: skip
    assert {*found(bild("download", "xsum", "vanilla", "--json"))} == {
        "large", "tokenizer", "data",
    }  # fmt: skip
    assert "api has no aligned small model" in refused(bild("download", "api", "aligned"))


def test_mirrors_and_folders_count_as_here(bild, hub, store, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("BILD_MODELS_ROOT", str(store))
    lines = tmp_path / "mirror" / "xsum" / "validation.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text('{"document": "d", "summary": "s"}\n')
    monkeypatch.setenv("BILD_DATA_ROOT", str(tmp_path / "mirror"))
    rows = found(bild("download", "xsum", "--json"))
    assert rows["large"]["path"] == str(store / XSUM.large)
    assert rows["data"]["path"] == "$BILD_DATA_ROOT/xsum/validation.jsonl"
    assert all(row["revision"] is None for row in rows.values())
    assert hub.requests == []


def test_the_shipped_pair_is_here(bild, hub):  # noqa: F811
    assert "Nothing is to be fetched." in bild("download", "demo")[1]
    pair = ("--large", "demo/large", "--small", "early-exit:2")
    assert {*found(bild("download", *pair, "--json"))} == {"large"}
    assert hub.requests == []


def test_a_dry_run_fetches_nothing(bild, hub):  # noqa: F811
    code, out, err = bild("download", "xsum", "--dry-run")
    assert (code, err, fetched(hub)) == (0, "", [])
    assert "1.0 kB to fetch" in out
    assert "To fetch: " in out
    assert not any(
        row["here"] for row in found(bild("download", "xsum", "--dry-run", "--json")).values()
    )


# ------------------------------------------------------------------------------ what it asks


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def large(monkeypatch):
    """What the store holds counts as much."""
    monkeypatch.setattr(download, "ASKED_ABOVE", 5000)


@pytest.mark.usefixtures("large")
def test_much_is_refused_where_nobody_can_be_asked(bild, hub, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    said = refused(bild("download", "xsum", "--json"))
    assert "standard input is no terminal; add --yes" in said
    assert fetched(hub) == []
    assert found(bild("download", "xsum", "--json", "--yes"))["large"]["here"]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 2), ("no\n", 2), ("", 2)])
def test_much_is_fetched_after_a_yes(bild, hub, monkeypatch, answer, code):  # noqa: F811
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    done = bild("download", "xsum", "--json")
    assert "kB? [y/N]" in done[2]
    assert (done[0], len(fetched(hub))) == (code, 0 if code else 4)


def test_little_is_not_asked_about(bild, hub, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert bild("download", "xsum")[1].endswith("is found without a network.\n")
    assert len(fetched(hub)) == 4


def test_a_disk_without_room_is_told_before(bild, hub, monkeypatch):  # noqa: F811
    monkeypatch.setattr(needs, "room_for", lambda _: 2000)
    assert "has room for 2.0 kB; make room, or set HF_HOME" in refused(
        bild("download", "xsum", "--json")
    )
    assert fetched(hub) == []


# ------------------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is named to download; give a task (iwslt2017, "),
        (("nosuch",), "must be one of iwslt2017, "),
        (("xsum", "fast"), "must be one of vanilla, "),
        (("xsum", "--large", "demo/large"), "task 'xsum' names its own models"),
        (("--large", "owner/nosuch"), "'owner/nosuch' is not on this machine, and"),
        (("--large", "./nosuch"), "model folder './nosuch' does not exist"),
        (("--small", f"{XSUM.small}@old"), f"{XSUM.small!r} at old is not on this machine"),
        (("--small", ""), "a folder or a hub id, got ''"),
    ],
)
def test_refusals(bild, hub, arguments, said):  # noqa: F811
    assert said in refused(bild("download", *arguments))
    assert fetched(hub) == []


def test_a_large_model_without_a_tokenizer_is_told_before(bild, hub):  # noqa: F811
    said = refused(bild("download", "--large", XSUM.large))
    assert f"large {XSUM.large!r} on the hub holds no tokenizer" in said
    assert "give --tokenizer" in said
    assert fetched(hub) == []


def test_no_network(bild, hub):  # noqa: F811
    hub.stop()
    assert "cannot be reached" in refused(bild("download", "xsum"))


def test_what_is_not_found_afterwards_is_told(bild, hub, monkeypatch):  # noqa: F811
    monkeypatch.setattr(needs.Need, "obtain", lambda self: None)
    monkeypatch.setattr(needs.Need, "find", lambda self: None)
    assert "is not found without the network" in refused(bild("download", "xsum", "--json"))
