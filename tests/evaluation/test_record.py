"""Records: read as they were written, refused where they are something else or do not compare."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import pytest
from records import environment, run_record, search_record

from bild import BildError
from bild.evaluation.arms import ArmId
from bild.evaluation.codec import decode, encode
from bild.evaluation.comparable import comparable
from bild.evaluation.record import RunRecord
from bild.tasks.registry import Thresholds
from bild.tuning.record import SearchRecord


@pytest.mark.parametrize(
    "record",
    [run_record(), run_record(rollback=math.inf, num_small_iters=math.inf),
     search_record([(0.4, 3.0, 19.5, 1.5), (0.5, 2.0, 19.9, 1.2)])],
)  # fmt: skip
def test_round_trip(record, tmp_path):
    record.save(tmp_path / "run.json")
    assert type(record).load(tmp_path / "run.json") == record
    assert [f.name for f in tmp_path.iterdir()] == ["run.json"]


def test_a_nan_loses_no_record(tmp_path):
    record = run_record()
    large = replace(record.large, tokens_per_sample=math.nan)
    replace(record, arms=(large, *record.arms[1:])).save(tmp_path / "run.json")
    assert math.isnan(RunRecord.load(tmp_path / "run.json").large.tokens_per_sample)


def test_arms_share_a_level_with_nothing_else(tmp_path):
    run_record().save(tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text())
    assert [arm["id"]["kind"] for arm in content["arms"]] == ["vanilla", "bild", "small"]
    names = {name for arm in content["arms"] for name in arm}
    assert names == {f.name for f in fields(run_record().large)}


def changed(path, name, value):
    content = json.loads(path.read_text())
    inner = content
    *outer, last = name.split(".")
    for key in outer:
        inner = inner[int(key) if isinstance(inner, list) else key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data", None, "'data' is missing or unknown"),
        ("extra", 1, "'extra' is missing or unknown"),
        ("arms.1.speed.seconds", None, r"'arms\[1\].speed.seconds' is missing or unknown"),
        ("arms.1.speed.seconds", "fast", r"'arms\[1\].speed.seconds' cannot be 'fast'"),
        ("arms.1.id.compiled", 1, r"'arms\[1\].id.compiled' cannot be 1"),
        ("env.versions", ["torch"], r"'env.versions' cannot be \['torch'\]"),
        ("config.mode", True, "'config.mode' cannot be True"),
        ("config.bild.fallback_threshold", -1, "fallback_threshold must be a number >= 0"),
        ("schema", 1, "not a run record of schema 2"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_its_field(tmp_path, name, value, message):
    path = tmp_path / "run.json"
    run_record().save(path)
    changed(path, name, value)
    with pytest.raises(BildError, match=message) as error:
        RunRecord.load(path)
    assert "run.json" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot read the record"),
        (b"[]", "holds no object but a list"),
        (b'{"schema": 99}', "not a run record of schema 2"),
        (b"\xff", "cannot read the record"),
        (b"9" * 5000, "cannot read the record"),
        (b"[" * 100_000, "cannot read the record"),
    ],
    ids=["torn", "list", "schema", "bytes", "number", "nesting"],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(BildError, match=message) as error:
        RunRecord.load(path)
    assert "other.json" in str(error.value)


def test_a_record_of_another_kind_is_refused(tmp_path):
    search_record([(0.4, 3.0, 19.5, 1.5)]).save(tmp_path / "search.json")
    with pytest.raises(BildError, match="not a run record"):
        RunRecord.load(tmp_path / "search.json")
    run_record().save(tmp_path / "run.json")
    with pytest.raises(BildError, match="not a search record"):
        SearchRecord.load(tmp_path / "run.json")


# ------------------------------------------------------------------------------ side by side


def with_large(record, **changes):
    return replace(record, arms=(replace(record.large, **changes), *record.arms[1:]))


def unlike(record):
    """What must not stand beside a run, and the word for why."""
    config, env, models = record.config, record.env, record.models
    quality = replace(record.large.quality["bleu"], signature="v:3")
    return {
        "data": replace(record, data=replace(record.data, sha256="456")),
        "large models": replace(
            record, models=replace(models, large=replace(models.large, fingerprint="xyz"))
        ),
        "tokenizers": replace(
            record, models=replace(models, tokenizer=replace(models.tokenizer, fingerprint="xyz"))
        ),
        "metrics": with_large(record, quality={"bleu": quality}),
        "output limits": replace(record, config=replace(config, max_new_tokens=5)),
        "source limits": replace(record, config=replace(config, max_source_tokens=64)),
        "engines": with_large(record, built="fast, float32, compiled without OpenMP"),
        "precisions": with_large(record, id=replace(record.large.id, precision="int8")),
        "devices": replace(record, env=replace(env, device="cuda:0")),
        "processors": replace(record, env=replace(env, processor="another x 64")),
        "graphics cards": replace(record, env=replace(env, gpu="a card")),
        "threads": replace(record, env=replace(env, threads=64)),
        "wait policies": replace(record, env=replace(env, wait_policy="PASSIVE")),
        "Python versions": replace(record, env=replace(env, python="3.12.1")),
        "passes": replace(record, timing=replace(record.timing, runs=3)),
        "commits": replace(record, env=replace(env, commit="e" * 40)),
        "sources of the package": replace(record, env=replace(env, code="e" * 64)),
        "torch versions": replace(record, env=environment(versions={"torch": "1"})),
        "ctranslate2 versions": replace(
            record, env=replace(env, versions={**env.versions, "ctranslate2": "4"})
        ),
    }


@pytest.mark.parametrize("what", unlike(run_record()))
def test_unlike_runs_are_not_compared(what):
    record = run_record()
    comparable(record, record)
    for pair in ((record, unlike(record)[what]), (unlike(record)[what], record)):
        with pytest.raises(BildError, match=f"their {what} differ, .* / "):
            comparable(*pair)


# ------------------------------------------------------------------------------ arms


def test_an_arm_has_one_name():
    named = {
        ArmId("vanilla", "fast", "float32", True): "vanilla-compiled@float32",
        ArmId("bild", "transformers", "bfloat16"): "bild-transformers@bfloat16",
        ArmId("ctranslate2", precision="int8"): "ctranslate2@int8",
        ArmId("bild", "fast", "int8", True, "aligned", Thresholds(0.4, 3)): (
            "bild-compiled@int8 aligned 0.4 3"
        ),
    }
    for arm, name in named.items():
        assert str(arm) == name
        assert decode(ArmId, json.loads(json.dumps(encode(arm)))) == arm


@dataclass(frozen=True)
class Odd:
    """Every kind of field that a record may have."""

    number: float | None
    either: int | Literal["auto"] | None
    ends: tuple[float, float]
    by_length: dict[int, tuple[str, ...]]
    anything: Any
    inner: ArmId | None = None


ODD = Odd(math.inf, "auto", (0.5, math.inf), {4: ("a", "b"), 40: ()}, {"x": [1]}, ArmId("bild"))


@pytest.mark.parametrize("change", [{}, {"either": 3}, {"either": None, "inner": None},
                                    {"number": None}, {"number": 2}])  # fmt: skip
def test_whatever_a_field_may_be_is_read_as_it_was_written(change):
    odd = replace(ODD, **change)
    assert decode(Odd, json.loads(json.dumps(encode(odd)))) == odd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"either": "else"}, "'either' cannot be 'else'"),
        ({"either": 1.5}, "'either' cannot be 1.5"),
        ({"ends": [1]}, "'ends' cannot be"),
        ({"by_length": {"4": "ab"}}, "'by_length.4' cannot be 'ab'"),
        ({"by_length": {"four": []}}, "'by_length' cannot be 'four'"),
        ({"inner": {"kind": "bild", "engin": "fast"}}, "'inner.engin' is missing or unknown"),
    ],
)
def test_what_a_field_may_not_be_is_refused_by_its_name(change, message):
    with pytest.raises(BildError, match=message):
        decode(Odd, {**json.loads(json.dumps(encode(ODD))), **change})
