"""Files of any damage, drawn by chance: taken or refused in one sentence, never a stack trace."""

from __future__ import annotations

import gzip
import json

import pytest
from commands import ROOT
from damage import broken_bytes, broken_json, taken_or_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from records import run_record, search_record

from bild import cli
from bild.benchmark.record import BenchmarkRecord
from bild.commands.main import module_of
from bild.evaluation.arms import VANILLA, ArmId
from bild.evaluation.loop import Sample
from bild.evaluation.record import RunRecord
from bild.files import read_lines
from bild.outputs.reading import look_through, read_texts
from bild.show.front import FrontRecord
from bild.tasks.reading import read_examples
from bild.training.record import AgreementRecord
from bild.tuning.record import SearchRecord

PAIRS = [("Guten Tag.", "Good day."), ("Ein „Satz“ über Öl.", "A sentence\u2028on oil."), ("", "-")]
LINES = "".join(json.dumps({"de": s, "en": t}, ensure_ascii=False) + "\n" for s, t in PAIRS)
DATA = {
    "x.jsonl": LINES.encode(),
    "x.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "x.json": json.dumps([{"de": s, "en": t} for s, t in PAIRS]).encode(),
    "x.tsv": b"de\ten\nGuten Tag.\tGood day.\nJa.\tYes.\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples of a test: hypothesis calls a test often, a fixture once."""
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.parametrize("name", DATA)
def test_data_files(folder, name):
    path, seen = folder / name, set()

    @settings(max_examples=40)
    @given(broken_bytes(DATA[name]))
    def damaged(content):
        path.write_bytes(content)
        seen.add(taken_or_refused(lambda: read_examples(path, "de", "en"), path))

    damaged()
    assert seen == {True, False}


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.txt"])
def test_files_to_decode(folder, name):
    path = folder / name
    form = "text" if name.endswith("txt") else "jsonl"

    def read():
        look_through(str(path))
        return list(read_texts(str(path), form, "de"))

    @settings(max_examples=40)
    @given(broken_bytes(DATA.get(name, LINES.encode())))
    def damaged(content):
        path.write_bytes(content)
        taken_or_refused(read, path)

    damaged()


def shipped(name):
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


RECORDS = {
    "run": (RunRecord, run_record().content()),
    "search": (
        SearchRecord,
        search_record([(0.4, 3.0, 19.5, 1.5), (0.6, 2.0, 19.0, 1.6)]).content(),
    ),
    "benchmark": (BenchmarkRecord, shipped("speed/batches-demo.json")),
    "agreement": (AgreementRecord, shipped("tatoeba/agreement.json")),
    "front": (FrontRecord, shipped("demo/front.json")),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_records(folder, kind):
    record, whole = RECORDS[kind]
    path, seen = folder / f"{kind}.json", set()
    text = json.dumps(whole).encode()

    @settings(max_examples=40)
    @given(st.one_of(broken_json(whole).map(lambda c: json.dumps(c).encode()), broken_bytes(text)))
    def damaged(content):
        path.write_bytes(content)
        seen.add(taken_or_refused(lambda: record.load(path), path))

    damaged()
    assert False in seen


ARM = ArmId(VANILLA, "fast", "float32", True)
SAMPLE = {
    "index": 0, "run": 0, "source": "Öl.", "reference": "Oil.", "source_tokens": 3,
    "truncated": False, "arms": {}, "failed": {}, "warmup_seconds": {str(ARM): 0.1}, "beside": {},
}  # fmt: skip


def test_lines_of_samples(folder):
    path, whole = folder / "samples.jsonl", json.dumps(SAMPLE).encode()

    def read():
        return read_lines(path, lambda line: Sample.from_json(line, {str(ARM): ARM}))

    @settings(max_examples=80)
    @given(
        st.one_of(
            broken_json(SAMPLE).map(lambda c: json.dumps(c).encode() + b"\n"),
            broken_bytes(whole + b"\n" + whole + b"\n"),
        )
    )
    def damaged(content):
        path.write_bytes(content)
        taken_or_refused(read, path)

    path.write_bytes(whole + b"\n")
    assert len(read()) == 1
    damaged()


SETTINGS = b"""\
large: demo/large
small: demo/small
max-new-tokens: 12
fallback: 0.4
rule: topk:k=3,tolerance=2
json: yes
"""
TASK = b"""\
large: demo/large
small: demo/small
data-file: demo/sentences.jsonl
source-key: de
target-key: en
metric: bleu
"""


def exit_code(main):
    """None where it returns."""
    try:
        cli.run(main)
    except SystemExit as end:
        return end.code
    return None


@pytest.mark.parametrize(("flag", "whole"), [("--config", SETTINGS), ("--task-file", TASK)])
def test_settings_and_tasks(folder, capsys, flag, whole):
    path = folder / "x.yaml"
    given_here = [flag, str(path)] if flag == "--task-file" else ["demo", flag, str(path)]

    @settings(max_examples=40)
    @given(broken_bytes(whole))
    def damaged(content):
        path.write_bytes(content)
        code = exit_code(lambda: module_of("eval").make_parser().parse_args(given_here))
        said = capsys.readouterr().err
        assert code in (None, 2)
        if code == 2:
            assert said.startswith("error: ")
            assert said.count("\n") == 1
            assert len(said) < 3000

    damaged()
