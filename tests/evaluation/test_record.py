import json
from dataclasses import replace

import pytest
import torch

from bild import BildError
from bild.evaluation.record import RunRecord, comparable, environment, peak_memory


@pytest.fixture
def record():
    return RunRecord(
        config={"task": "demo", "bild": {"rollback_threshold": "inf"}},
        models={
            "large": {"id": "demo/large", "fingerprint": "abc"},
            "tokenizer": {"id": "demo/large", "fingerprint": "def"},
        },
        data={"sha256": "123", "samples": 2},
        env={"dtype": "float32", "device": "cpu"},
        quality={"metric": "bleu", "vanilla": {"value": 30.0, "signature": "v:2"}},
        speed={},
        decoding={},
    )


def test_round_trip(record, tmp_path):
    record.save(tmp_path / "run.json")
    assert RunRecord.load(tmp_path / "run.json") == record
    assert [f.name for f in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the record"),
        ("[]", "not a run record of schema 1"),
        ('{"schema": 99}', "not a run record of schema 1"),
        ('{"schema": 1, "config": {}}', "'data' is missing or unknown"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(BildError) as error:
        RunRecord.load(path)
    assert message in str(error.value)
    assert "other.json" in str(error.value)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("data", {"sha256": "456"}, "data differ, 123 / 456"),
        ("models", {"large": {"fingerprint": "xyz"}}, "large models differ, abc / xyz"),
        (
            "models",
            {"large": {"fingerprint": "abc"}, "tokenizer": {"fingerprint": "xyz"}},
            "tokenizers differ, def / xyz",
        ),
        ("quality", {"vanilla": {"signature": "v:3"}}, "metrics differ, v:2 / v:3"),
        ("env", {"dtype": "bfloat16", "device": "cpu"}, "precisions differ"),
        ("env", {"dtype": "float32", "device": "T4"}, "devices differ, cpu / T4"),
    ],
)
def test_unlike_runs_are_not_compared(record, part, change, message):
    comparable(record, record)
    with pytest.raises(BildError) as error:
        comparable(record, replace(record, **{part: change}))
    assert message in str(error.value)


def test_a_record_that_does_not_name_its_tokenizer_can_be_compared(record):
    older = replace(record, models={"large": record.models["large"]})
    comparable(record, older)
    comparable(older, record)


def test_environment_names_libraries_and_no_path():
    env = environment(torch.device("cpu"), torch.bfloat16)
    assert env["torch"] == torch.__version__
    assert env["dtype"] == "bfloat16"
    assert "/" not in json.dumps(env)
    assert peak_memory(torch.device("cpu"))["host_bytes"] > 10**8
