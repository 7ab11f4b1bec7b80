"""The benchmark script on a tiny planted pair: its record, its arms, going on, and bad input."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from bild import cli
from bild.benchmark import arms, planted
from bild.engines import build

ROOT = Path(__file__).resolve().parents[2]
TINY = {"vocab_size": 900, "d_kv": 32, "d_model": 256, "d_ff": 64, "num_heads": 2}
PAIR = ("--pair", "t5-large/t5-small", "--rates", "iwslt2017", "--source-tokens", 6)


@pytest.fixture
def benchmark(monkeypatch, capsys, tmp_path):
    """The script in this process, on shapes that are tiny: (exit code, output, errors)."""
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts" / "benchmark.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, layers in (("t5-large", 2), ("t5-small", 1)):
        monkeypatch.setitem(planted.SHAPES, name, {**TINY, "num_layers": layers})
    monkeypatch.setattr("bild.benchmark.costs.CEILING_BYTES", 2**22)

    def run(*arguments):
        folder = ("--output-dir", tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, (*arguments, *folder))])
        capsys.readouterr()
        code = 0
        try:
            cli.run(script.main, resumes=True)
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def record_of(out):
    return json.loads(Path(out.strip().splitlines()[-1]).read_text())


def test_arms_side_by_side_on_a_planted_pair(benchmark):
    kinds = ["greedy", "assisted-constant", "greedy-small", "bild-transformers", "vanilla-fast"]
    names = [f"{kind}@float32" for kind in kinds]
    if build.find_compiler():
        names += ["bild-compiled@float32", "bild-compiled@int8"]
    if importlib.util.find_spec("ctranslate2"):
        names += ["ctranslate2@float32", "ctranslate2@int8"]
    impossible = "ctranslate2@float16"  # not on a CPU, or not at all
    code, out, err = benchmark(
        *PAIR, "--samples", 2, "--warmup", 0, "--arms", ",".join([*names, impossible])
    )
    assert code == 0, err
    record = record_of(out)
    assert list(record["arms"]) == names
    assert list(record["failed"]) == [impossible]
    assert f"{impossible} did not run" in out
    assert "simulated acceptance" in out
    assert record["memory"]["bytes_per_second"]["median"] > 0

    for name, arm in record["arms"].items():
        if name == "greedy-small@float32":
            assert arm["same_output"]["greedy@float32"] == 0
        else:
            assert arm["as_planned"] == 1, name
            assert arm["same_output"]["greedy@float32"] == 1, name
            assert arm["models"]["large"]["bytes_per_second"] > 0, name
        assert 0 < arm["seconds"]["low"] <= arm["seconds"]["high"]
        assert 0 < arm["encoder_seconds"]["median"] < arm["seconds"]["median"], name
        assert arm["overhead"] is None or 0 < arm["overhead"] < 1, name
        assert arm["ratio"]["to"] == "greedy@float32"
        assert ("ratio_same" in arm) == name.endswith("float32")
    assert record["arms"]["greedy@float32"]["ratio"]["value"] == 1
    assert record["arms"]["greedy@float32"]["models"]["large"]["forward_rate"] == 100
    assert "small" not in record["arms"]["vanilla-fast@float32"]["models"]
    assert record["arms"]["assisted-constant@float32"]["models"]["small"]["forward_rate"] > 50

    rates = record["arms"]["bild-transformers@float32"]["rates"]
    assert rates["fallback_rate"] == pytest.approx(record["data"]["fallback_rate"], abs=1.8)
    assert rates["rollback_rate"] == pytest.approx(record["data"]["rollback_rate"], abs=1.8)
    assert list(record["costs"]) == [n for n in names if n.startswith("bild")]
    for cost in record["costs"].values():
        assert list(cost["large_steps"]) == ["1", "2", "4", "8", "11"]
        assert cost["floor_seconds"] > 0
        assert cost["speedup"]["predicted"] > 0


def test_a_stopped_run_goes_on_and_a_failed_arm_stays_out(benchmark, monkeypatch):
    arguments = (*PAIR, "--samples", 3, "--warmup", 0, "--arms", "vanilla-fast,bild-fast")
    run, left = arms.BiLDArm.run, iter(range(3))

    def failing(arm, case):
        if next(left, None) is None:
            raise KeyboardInterrupt
        if arm.what == "large":
            raise RuntimeError("no more\nof this")
        return run(arm, case)

    with monkeypatch.context() as patch:
        patch.setattr(arms.BiLDArm, "run", failing)
        code, _, err = benchmark(*arguments)
    assert code == 130
    assert "goes on from here" in err
    code, out, err = benchmark(*arguments)
    assert code == 0, err
    record = record_of(out)
    assert record["env"]["resumed_after"] == 2
    assert record["failed"] == {"vanilla-fast@float32": "RuntimeError: no more"}
    assert list(record["arms"]) == ["bild-fast@float32"]
    assert record["data"]["samples"] == 3
    code, again, _ = benchmark(*arguments)  # a finished one is not taken up again
    assert record_of(again)["env"]["resumed_after"] == 0


def test_growth_decodes_to_each_length(benchmark):
    code, out, err = benchmark(
        *PAIR,
        "--samples",
        1,
        "--warmup",
        0,
        "--arms",
        "vanilla-fast,bild-fast",
        "--lengths",
        "4,40",
    )
    assert code == 0, err
    record = record_of(out)
    for growth in record["growth"].values():
        assert list(growth["lengths"]) == ["4", "40"]
        assert growth["longest_over_shortest"] > 0
    lines = Path(out.strip().splitlines()[-1]).with_name("samples.jsonl").read_text().splitlines()
    lengths = [{len(o["tokens"]) for o in json.loads(line)["outcomes"].values()} for line in lines]
    assert lengths == [{4}, {40}]


def test_a_real_pair_is_scored_and_can_be_decoded_to_a_length(benchmark):
    kinds = ("--arms", "vanilla-fast,bild-fast", "--samples", 1, "--warmup", 0)
    code, out, err = benchmark("--large", "demo/large", "--small", "demo/small", *kinds)
    assert code == 0, err
    record = record_of(out)
    assert record["models"]["large"]["id"] == "demo/large"
    quality = record["arms"]["vanilla-fast@float32"]["quality"]
    assert quality["low"] <= quality["value"] <= quality["high"]
    assert "as_planned" not in record["arms"]["bild-fast@float32"]
    code, out, err = benchmark(*kinds, "--lengths", "12")
    assert code == 0, err
    lines = Path(out.strip().splitlines()[-1]).with_name("samples.jsonl").read_text().splitlines()
    for line in lines:
        assert {len(o["tokens"]) for o in json.loads(line)["outcomes"].values()} == {12}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arms", "greedy,eager"), "unknown arm 'eager'"),
        (("--arms", "greedy@int8"), "unknown precision of greedy 'int8'"),
        (("--precisions", "int4"), "unknown precision 'int4'"),
        (("--arms", "greedy", "--precisions", "int8"), "no arm can run in int8"),
        (("--pair", "t5-huge/t5-small"), "unknown pair 't5-huge/t5-small'"),
        (("--rates", "cnndm"), "--rates cnndm needs --pair"),
        ((*PAIR, "--large", "x"), "--large x does not go with --pair"),
        ((*PAIR, "--fallback", 0.1, "--rollback", 9), "no rates are recorded for iwslt2017"),
        (("--fallback", 0.1), "give both --fallback and --rollback"),
        (("--samples", 0), "samples must be at least 1, got 0"),
        (("--lengths", "4,x"), "expected whole numbers as in 32,128, got '4,x'"),
        (("--lengths", "1"), "an output length must be at least 2, got 1"),
        (("--large", "nowhere"), "nowhere"),
        ((*PAIR, "--arms", "bild-compiled@float16"), "unknown precision of bild-compiled"),
    ],
)
def test_mistakes_end_with_a_sentence(benchmark, arguments, message):
    code, _, err = benchmark(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
