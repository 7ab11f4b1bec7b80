"""Examples: every source in its order, every mistake by file and line."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import time
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from commands import AT_ONCE
from hub_server import PARQUET_BRANCH, HubServer
from huggingface_hub import close_session, constants

from bild.config import EvalConfig
from bild.errors import BildError
from bild.tasks import data
from bild.tasks.data import checksum, load_examples, load_file
from bild.tasks.reading import Example, read_jsonl
from bild.tasks.registry import TASKS, get
from bild.tasks.sources import locate

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
NOWHERE = "http://127.0.0.1:9"
ROWS = [{"de": f"Satz {i}", "en": f"sentence {i}"} for i in range(5)]
EXAMPLES = [Example(row["de"], row["en"]) for row in ROWS]
IWSLT = get("iwslt2017")


def use_hub(monkeypatch, url):
    """Let the hub's clients in this process ask an address; elsewhere HF_ENDPOINT does that."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No hub, an empty cache, no mirror."""
    use_hub(monkeypatch, NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("BILD_DATA_ROOT", "BILD_HUB_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    close_session()
    yield
    close_session()


@pytest.fixture
def server(monkeypatch):
    """A hub on the loopback interface, empty."""
    with HubServer() as hub:
        use_hub(monkeypatch, hub.url)
        yield hub


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def mirror(monkeypatch, tmp_path, name, content):
    monkeypatch.setenv("BILD_DATA_ROOT", str(tmp_path / "mirror"))
    return write(tmp_path / "mirror" / name, content)


def cached_parquet(tmp_path, name, rows):
    """A split on the parquet branch, as a download leaves it in the hub's cache."""
    where = get(name).data
    repo = tmp_path / "hub" / f"datasets--{where.path.replace('/', '--')}"
    write(repo / "refs" / PARQUET_BRANCH, COMMIT)
    write_parquet(repo / "snapshots" / COMMIT, name, rows)


def write_parquet(folder, name, rows, split=None, number=0):
    where = get(name).data
    split = where.split if split is None else split
    path = folder / (where.config or "default") / split / f"{number:04d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# ------------------------------------------------------------------------------ files


def test_read_plain_and_gzip(tmp_path):
    plain = write(tmp_path / "a.jsonl", lines())
    packed = write(tmp_path / "a.jsonl.gz", gzip.compress(lines().encode()))
    assert read_jsonl(plain, "de", "en") == EXAMPLES
    assert read_jsonl(packed, "de", "en") == EXAMPLES


def test_what_else_is_fine(tmp_path):
    text = (
        '\ufeff{"de": "", "en": "empty source"}\r\n'
        ' {"en": "line\\nbreak", "id": 7, "de": "eins\u2028zwei"} \n\n  \n'
    )
    path = write(tmp_path / "a.json", text)
    assert read_jsonl(str(path), "de", "en") == [
        Example("", "empty source"),
        Example("eins\u2028zwei", "line\nbreak"),
    ]


def test_lines_as_the_hub_has_them(tmp_path):
    rows = [{"id": i, "translation": row} for i, row in enumerate(ROWS)]
    mixed = [*rows[:4], {**ROWS[4], "translation": "of a kind"}]
    assert read_jsonl(write(tmp_path / "a.jsonl", lines(mixed)), "de", "en") == EXAMPLES


GOOD = '{"de": "a", "en": "b"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + '{"de": "a", "en": "b"\n', "line 2 is not valid JSON"),
        ("a\tb\n", "line 1 is not valid JSON"),
        (GOOD + GOOD + '["a", "b"]\n', "line 3 is a list, not an object.*'de' and 'en'"),
        (GOOD + '{"de": "a"}\n', r"line 2 has no key 'en' \(its keys: de\)"),
        ("{}\n", r"line 1 has no key 'de' \(its keys: none\)"),
        ('{"translation": {"de": "a"}}\n', r"line 1 has no key 'en' \(its keys: de\)"),
        ('{"translation": ["a", "b"]}\n', r"no key 'de' \(its keys: translation\)"),
        (GOOD + f'{{"de": "a", "en": "b", "n": {"7" * 5000}}}\n', "line 2 holds a number of more"),
        (f"{'7' * 5000}\n", "line 1 holds a number of more than 4,300 digits"),
        ('{"de": null, "en": "b"}\n', "line 1 has None as 'de'; it must be a string"),
        (GOOD + '{"de": "a", "en": 3.5}\n', "line 2 has 3.5 as 'en'"),
        ('{"de": "\\ud800", "en": "b"}\n', "line 1 has half a surrogate pair in 'de'"),
        (GOOD + "\n" + GOOD, "line 2 is empty; remove it"),
        ("[" * 100_000 + "\n", "line 1 is (not valid JSON|nested too deeply)"),
        ("", "holds no examples"),
        ("\n\n", "holds no examples"),
        (GOOD.encode() + '{"de": "ä", "en": "b"}'.encode("latin-1"), "line 2 is not UTF-8"),
        (GOOD.encode("utf-16"), "line 1 is not UTF-8"),
    ],
)
def test_mistakes_are_named_by_file_and_line(tmp_path, content, message):
    for name, encode in (("bad.jsonl", bytes), ("bad.jsonl.gz", gzip.compress)):
        raw = content if isinstance(content, bytes) else content.encode()
        path = write(tmp_path / name, encode(raw))
        with pytest.raises(BildError, match=message) as error:
            read_jsonl(path, "de", "en")
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_line_without_end_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    with pytest.raises(BildError, match="/dev/zero, line 1 is longer than 16,000,000 bytes"):
        read_jsonl("/dev/zero", "de", "en")
    monkeypatch.setattr("bild.tasks.reading.LONGEST_LINE", len(GOOD))
    bomb = write(tmp_path / "a.jsonl.gz", gzip.compress(GOOD.encode() + b" " * 10**7))
    with pytest.raises(BildError, match="line 2 is longer"):
        read_jsonl(bomb, "de", "en")
    assert len(read_jsonl(write(tmp_path / "b.jsonl", GOOD * 3), "de", "en")) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(), "is not a gzip file"),
        (gzip.compress(lines().encode(), mtime=0)[:-12], "damaged or truncated gzip"),
    ],
)
def test_bad_gzip(tmp_path, content, message):
    path = write(tmp_path / "a.jsonl.gz", content)
    with pytest.raises(BildError, match=message):
        read_jsonl(path, "de", "en")


def test_no_file(tmp_path):
    with pytest.raises(BildError, match=r"none.jsonl' does not exist"):
        read_jsonl(tmp_path / "none.jsonl", "de", "en")
    with pytest.raises(BildError, match="is a folder"):
        read_jsonl(tmp_path, "de", "en")
    with pytest.raises(BildError, match="cannot be read: File name too long"):
        read_jsonl(tmp_path / ("x" * 300), "de", "en")


# ------------------------------------------------------------------------------ sources


def test_given_file(tmp_path):
    path = write(tmp_path / "mine.jsonl", lines())
    loaded = load_examples(IWSLT, None, data_file=path)
    assert loaded.examples == tuple(EXAMPLES)
    assert (loaded.origin, loaded.revision, loaded.split) == (str(path), None, "validation")
    assert loaded.available == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.available = 6


def test_given_file_wins_over_the_mirror(monkeypatch, tmp_path):
    mirror(monkeypatch, tmp_path, "iwslt2017/validation.jsonl", lines())
    path = write(tmp_path / "mine.jsonl", lines(ROWS[:1]))
    assert load_examples(IWSLT, None, data_file=path).available == 1


def test_missing_given_file_is_not_replaced(monkeypatch, tmp_path):
    mirror(monkeypatch, tmp_path, "iwslt2017/validation.jsonl", lines())
    with pytest.raises(BildError, match=r"mine.jsonl' does not exist"):
        load_examples(IWSLT, None, data_file=tmp_path / "mine.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_mirror(monkeypatch, tmp_path, suffix):
    content = lines().encode()
    content = gzip.compress(content) if suffix.endswith("gz") else content
    mirror(monkeypatch, tmp_path, f"iwslt2017/validation{suffix}", content)
    loaded = load_examples(IWSLT, None)
    assert loaded.examples == tuple(EXAMPLES)
    assert loaded.origin == f"$BILD_DATA_ROOT/iwslt2017/validation{suffix}"


def test_mirror_wins_over_the_shipped_file(monkeypatch, tmp_path):
    mirror(monkeypatch, tmp_path, "demo/test.jsonl", lines())
    assert load_examples(get("demo"), None).available == 5


def test_mirror_that_is_not_a_folder(monkeypatch):
    monkeypatch.setenv("BILD_DATA_ROOT", "/no/such/data")
    with pytest.raises(BildError, match="BILD_DATA_ROOT is '/no/such/data'"):
        load_examples(IWSLT, None)


def test_shipped_file_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaded = load_examples(get("demo"), 3)
    assert loaded.origin == "demo/sentences.jsonl"
    assert loaded.available >= 300
    assert len(loaded.examples) == 3


def test_shipped_file_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "REPOSITORY_ROOT", tmp_path)
    with pytest.raises(BildError, match=r"demo are not at 'demo/sentences.jsonl'.*--data-file"):
        load_examples(get("demo"), None)


# ------------------------------------------------------------------------------ how many


def test_the_first_in_order(tmp_path):
    path = write(tmp_path / "a.jsonl", lines())
    loaded = load_examples(IWSLT, 2, data_file=path)
    assert loaded.examples == tuple(EXAMPLES[:2])
    assert loaded.available == 5
    assert load_examples(IWSLT, 5, data_file=path).examples == tuple(EXAMPLES)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3"])
def test_bad_counts_are_refused_before_anything_is_read(tmp_path, count):
    with pytest.raises(BildError, match=f"must be at least 1, got {count!r}"):
        load_examples(IWSLT, count, data_file=tmp_path / "none.jsonl")


def test_too_many(tmp_path):
    path = write(tmp_path / "a.jsonl", lines())
    with pytest.raises(BildError, match=r"6 samples were asked for but .*a.jsonl has 5"):
        load_examples(IWSLT, 6, data_file=path)


def test_checksum_is_of_the_examples_returned(tmp_path):
    path = write(tmp_path / "a.jsonl", lines())
    packed = write(tmp_path / "b.jsonl.gz", gzip.compress(lines().encode()))
    whole = load_examples(IWSLT, None, data_file=path)
    assert whole.sha256 == load_examples(IWSLT, 5, data_file=packed).sha256
    assert whole.sha256 == checksum(EXAMPLES)
    assert load_examples(IWSLT, 4, data_file=path).sha256 == checksum(EXAMPLES[:4])
    assert len({checksum(EXAMPLES), checksum(EXAMPLES[:4]), checksum(EXAMPLES[::-1])}) == 3


def test_checksum_is_what_it_says():
    expected = hashlib.sha256('["ä","b\\nc"]\n["",""]\n'.encode()).hexdigest()
    assert checksum([Example("ä", "b\nc"), Example("", "")]) == expected
    assert checksum([Example("a", "bc")]) != checksum([Example("ab", "c")])


# ------------------------------------------------------------------------------ the hub


@pytest.mark.parametrize(
    ("name", "row", "example"),
    [
        ("iwslt2017", {"translation": {"de": "eins", "en": "one"}}, Example("eins", "one")),
        ("wmt2014", {"translation": {"de": "eins", "en": "one"}}, Example("eins", "one")),
        ("xsum", {"document": "d", "summary": "s", "id": "1"}, Example("d", "s")),
        ("cnndm", {"article": "d", "highlights": "s\nt", "id": "1"}, Example("d", "s\nt")),
        ("api", {"api": "A.b", "description": "d"}, Example("d", "A.b")),
        ("api", {"code": "A.b", "docstring": "d", "idx": 3}, Example("d", "A.b")),
    ],
)
def test_cached_data_is_read_without_a_request(tmp_path, server, name, row, example):
    cached_parquet(tmp_path, name, [row, row])
    loaded = load_examples(get(name), 1)
    assert loaded.examples == (example,)
    assert (loaded.origin, loaded.revision) == (get(name).data.path, COMMIT)
    assert loaded.available == 2
    assert server.requests == []


XSUM = [{"document": f"d{i}", "summary": "s"} for i in range(3)]


def test_data_are_downloaded_once_and_only_the_split(tmp_path, server):
    store = tmp_path / "store"
    write_parquet(store, "xsum", XSUM[:2])
    write_parquet(store, "xsum", XSUM[2:], number=1)
    write_parquet(store, "xsum", XSUM, split="train")
    commit = server.add("datasets", "EdinburghNLP/xsum", store, PARQUET_BRANCH)
    loaded = load_examples(get("xsum"), None)
    assert [e.source for e in loaded.examples] == ["d0", "d1", "d2"]
    assert loaded.revision == commit
    assert len([r for r in server.requests if r.startswith("GET /blobs/")]) == 2
    asked = len(server.requests)
    assert load_examples(get("xsum"), None) == loaded
    assert len(server.requests) == asked


def test_data_can_be_pinned(tmp_path, server):
    write_parquet(tmp_path / "old", "xsum", XSUM[:1])
    write_parquet(tmp_path / "new", "xsum", XSUM[1:])
    old = server.add("datasets", "EdinburghNLP/xsum", tmp_path / "old", "before")
    new = server.add("datasets", "EdinburghNLP/xsum", tmp_path / "new", PARQUET_BRANCH)
    pinned = dataclasses.replace(get("xsum").data, revision=old)
    task = dataclasses.replace(get("xsum"), data=pinned)
    assert (load_examples(task, None).revision, load_examples(task, None).available) == (old, 1)
    loaded = load_examples(get("xsum"), None)
    assert (loaded.revision, loaded.available) == (new, 2)


def test_data_are_pinned_by_a_flag(monkeypatch, tmp_path, server):
    write_parquet(tmp_path / "old", "xsum", XSUM[:1])
    commit = server.add("datasets", "EdinburghNLP/xsum", tmp_path / "old", "before")
    monkeypatch.setenv("BILD_DATA_ROOT", "")
    options = {"large": "demo/large", "tokenizer": "demo/large", "data_revision": "before"}
    found = locate(EvalConfig("xsum", "vanilla", None, **options))
    assert (found.data.revision, found.data.available) == (commit, 1)


def test_another_revision_is_never_taken_for_the_one_asked_for(tmp_path, server):
    """Neither where the branch is missing nor where the hub fails, as it once did."""
    write_parquet(tmp_path / "main", "xsum", XSUM)
    server.add("datasets", "EdinburghNLP/xsum", tmp_path / "main", "main")
    with pytest.raises(BildError, match=f"revision {PARQUET_BRANCH}.*it has no such revision"):
        load_examples(get("xsum"), None)
    server.add("datasets", "EdinburghNLP/xsum", tmp_path / "main", PARQUET_BRANCH)
    server.failing = "default/validation/0000.parquet"
    with pytest.raises(BildError, match=r"does not give it \(HfHubHTTPError: .*403") as error:
        load_examples(get("xsum"), None)
    assert "\n" not in str(error.value)


def test_a_split_that_the_hub_lacks(tmp_path, server):
    write_parquet(tmp_path / "store", "xsum", XSUM, split="train")
    server.add("datasets", "EdinburghNLP/xsum", tmp_path / "store", PARQUET_BRANCH)
    with pytest.raises(BildError, match="has no such files"):
        load_examples(get("xsum"), None)


def test_a_damaged_download(tmp_path):
    cached_parquet(tmp_path, "xsum", XSUM)
    (damaged,) = tmp_path.rglob("*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(BildError, match="cannot be read from the hub's cache") as error:
        load_examples(get("xsum"), None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("api", {"question": "d", "answer": "A"}, "has the columns question, answer instead of"),
        ("api", {"description": "d", "api": None}, "row 0 .* has None as 'api'"),
        ("xsum", {"document": "d", "summary": 3}, "row 0 .* has 3 as 'summary'"),
        ("iwslt2017", {"de": "a", "en": "b"}, "columns de, en instead of translation.de and"),
        ("iwslt2017", {"translation": {"de": "a"}}, "row 0 .* has None as 'translation.en'"),
        ("iwslt2017", {"translation": "a"}, "row 0 .* has None as 'translation.de'"),
    ],
)
def test_unexpected_columns(tmp_path, name, row, message):
    cached_parquet(tmp_path, name, [row])
    with pytest.raises(BildError, match=message):
        load_examples(get(name), None)


@pytest.mark.parametrize("name", [n for n, task in TASKS.items() if task.data is not None])
def test_no_mirror_no_cache_no_network(monkeypatch, tmp_path, name):
    monkeypatch.setenv("BILD_DATA_ROOT", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(BildError) as error:
        load_examples(get(name), 10)
    assert time.perf_counter() - start < AT_ONCE
    wanted = get(name).data.path
    for part in (wanted, NOWHERE, str(tmp_path), f"{name}/validation.jsonl", "--data-file"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_are_paths(tmp_path):
    path = write(tmp_path / "a.jsonl", lines())
    assert isinstance(path, Path)
    assert load_examples(IWSLT, 1, data_file=str(path)).examples == tuple(EXAMPLES[:1])


def test_many_lines_are_loaded_in_memory_of_their_size(tmp_path):
    path = tmp_path / "long.jsonl"
    with path.open("w") as stream:
        for i in range(20_000):
            stream.write(
                json.dumps({"de": f"{i} " + "wort " * 25, "en": f"{i} " + "word " * 25}) + "\n"
            )
    tracemalloc.start()
    try:
        data = load_file(path, "de", "en", "train")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.examples) == 20_000
    assert peak < 3 * path.stat().st_size  # texts, once, with what Python adds to each
