"""The benchmark script on a tiny planted pair: its record, its arms, going on, and bad input."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_t5

from bild import BiLDConfig, BildError, cli
from bild.benchmark import planted
from bild.benchmark.kinds import KINDS, Kind, PairArm, kind_of, parse_arms
from bild.benchmark.kit import Kit
from bild.benchmark.profile import ModelTime, Profile, _TimedDecoder
from bild.benchmark.record import BenchmarkRecord
from bild.benchmark.rivals import TransformersArm
from bild.engines import Decoder, build
from bild.evaluation.arms import ArmId, Case, Outcome
from bild.show.speed_tables import two_factors

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
    return BenchmarkRecord.load(Path(out.strip().splitlines()[-1]))


def lines_of(out):
    path = Path(out.strip().splitlines()[-1]).with_name("samples.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_arms_side_by_side_on_a_planted_pair(benchmark):
    names = ["greedy", "assisted-constant", "greedy-small", "bild-transformers", "vanilla-fast"]
    names = [f"{name}@float32" for name in names]
    if build.find_compiler():
        names += ["vanilla-compiled@int8", "bild-compiled@float32", "bild-compiled@int8"]
    if importlib.util.find_spec("ctranslate2"):
        names += ["ctranslate2@float32", "ctranslate2@int8"]
    impossible = "ctranslate2@float16"  # not on a CPU, or not at all
    code, out, err = benchmark(
        *PAIR, "--samples", 2, "--warmup", 0, "--arms", ",".join([*names, impossible])
    )
    assert code == 0, err
    record = record_of(out)
    arms = {str(arm.id): arm for arm in record.arms}
    assert list(arms) == names
    assert [str(f.id) for f in record.failed] == [impossible]
    assert "CTranslate2 greedy (float16) did not run" in out
    assert "simulated acceptance" in out
    assert record.memory.median > 0

    for name, arm in arms.items():
        if name == "greedy-small@float32":
            assert arm.same_output == 0
            assert arm.as_planned is None
        else:
            assert arm.as_planned == 1, name
            assert arm.same_output == 1, name
            assert arm.models["large"].bytes_per_second > 0, name
        assert 0 < arm.seconds.low <= arm.seconds.high
        assert 0 < arm.encoder_share < 1, name
        assert arm.outside_share is None or 0 < arm.outside_share < 1, name
        assert (arm.outside_share is None) == (arm.id.kind == "ctranslate2")
        assert str(arm.ratio.to) == "greedy@float32"
        assert (arm.ratio_same is not None) == (arm.id.precision == "float32")
        assert arm.built
    greedy = arms["greedy@float32"]
    assert (greedy.ratio.seconds.value, greedy.ratio.decoding) == (1, 1)
    assert greedy.models["large"].forward_rate == 100
    assert set(arms["vanilla-fast@float32"].models) == {"large"}
    assert arms["vanilla-fast@float32"].models["large"].forward_rate == 100
    assert arms["assisted-constant@float32"].models["small"].forward_rate > 50

    row = record.config.rates
    rates = arms["bild-transformers@float32"].rates
    assert rates.fallback_rate == pytest.approx(row.fallback_rate, abs=1.8)
    assert rates.rollback_rate == pytest.approx(row.rollback_rate, abs=1.8)
    for name, arm in arms.items():
        assert (arm.costs is not None) == (arm.id.kind == "bild"), name
        if arm.costs is not None:
            assert list(arm.costs.large_steps) == [1, 2, 4, 8, 11]
            assert arm.costs.floor_seconds > 0
            assert arm.costs.speedups["predicted"] > 0
            use = arm.models["large"].forward_rate
            assert use == pytest.approx(rates.large_forward_rate)
    assert (
        arms["bild-transformers@float32"].ratio_alone is None
    )  # the large model did not run there
    if build.find_compiler():
        added = arms["bild-compiled@int8"].ratio_alone
        assert str(added.to) == "vanilla-compiled@int8"
        assert two_factors([record]).count("| ") > 5
    require_strict_json(out)


def require_strict_json(out):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    path = Path(out.strip().splitlines()[-1])
    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_stopped_run_goes_on_and_a_failed_arm_stays_out(benchmark, monkeypatch):
    arguments = (*PAIR, "--samples", 3, "--warmup", 0, "--arms", "vanilla-fast,bild-fast")
    run, left = PairArm.run, iter(range(2))

    def failing(arm, case):
        if arm.kind == "vanilla":
            raise RuntimeError("no more\nof this")
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(arm, case)

    with monkeypatch.context() as patch:
        patch.setattr(PairArm, "run", failing)
        code, _, err = benchmark(*arguments)
    assert code == 130
    assert "goes on from here" in err
    code, out, err = benchmark(*arguments)
    assert code == 0, err
    record = record_of(out)
    assert record.env.resumed_after == 2
    assert [(str(f.id), f.why) for f in record.failed] == [
        ("vanilla-fast@float32", "RuntimeError: no more")
    ]
    assert [str(arm.id) for arm in record.arms] == ["bild-fast@float32"]
    assert record.data.samples == 3
    code, again, _ = benchmark(*arguments)  # a finished one is not taken up again
    assert record_of(again).env.resumed_after == 0
    assert len(record_of(again).arms) == 2


def test_repeated_runs_are_in_the_intervals(benchmark):
    kinds = ("--arms", "greedy,bild-fast", "--samples", 2, "--warmup", 1, "--repeat", 3)
    code, out, err = benchmark(*PAIR, *kinds)
    assert code == 0, err
    record = record_of(out)
    assert [(line["run"], line["index"]) for line in lines_of(out)] == [
        (run, index) for run in range(3) for index in range(2)
    ]
    assert record.timing.runs == 3
    assert "3 runs and their examples" in record.timing.interval
    assert "3 runs and their examples" in out
    pair = record.arms[1]
    assert pair.stats.generated_tokens == sum(
        len(line["arms"]["bild-fast@float32"]["tokens"]) for line in lines_of(out)[:2]
    )


def test_growth_decodes_to_each_length(benchmark):
    code, out, err = benchmark(
        *PAIR, "--samples", 1, "--warmup", 0, "--arms", "greedy,vanilla-fast,bild-fast",
        "--lengths", "4,40",
    )  # fmt: skip
    assert code == 0, err
    record = record_of(out)
    assert record.arms == ()
    assert len(record.growth) == 3
    for growth in record.growth:
        assert list(growth.seconds) == list(growth.decoding) == [4, 40]
        assert growth.longest_over_shortest > 0
        for length, spread in growth.decoding.items():
            assert 0 < spread.median < growth.seconds[length].median
    lengths = [{len(arm["tokens"]) for arm in line["arms"].values()} for line in lines_of(out)]
    assert lengths == [{4}, {40}]


def test_throughput_decodes_all_sources_at_each_batch_size(benchmark):
    code, out, err = benchmark(
        *PAIR, "--samples", 5, "--warmup", 1, "--repeat", 2,
        "--arms", "greedy,vanilla-fast,bild-fast,bild-transformers,bild-adaptive-fast",
        "--batch-sizes", "1,2,8",
    )  # fmt: skip
    assert code == 0, err
    record = record_of(out)
    assert (record.arms, record.growth) == ((), ())
    assert record.config.batch_sizes == (1, 2, 8)
    assert len(record.throughput) == 5
    assert [arm.title for arm in record.throughput if arm.id.adaptive] == [
        "BiLD, adaptive, fast engine"
    ]
    for arm in record.throughput:
        assert list(arm.sentences_per_second) == [1, 2, 8]
        for size, spread in arm.sentences_per_second.items():
            assert 0 < spread.low <= spread.median <= spread.high
            assert arm.tokens_per_second[size] > spread.median  # outputs are longer than a token
        # By a rule that is not exact what an adaptive arm writes depends on the clock.
        assert arm.id.adaptive or all(arm.same_tokens.values())
    lines = lines_of(out)
    assert [line["source"] for line in lines[:3]] == [
        f"5 sources, {size} at a time" for size in (1, 2, 8)
    ]
    # The same tokens from transformers and from us, at every batch size, and the counts of one row.
    for kind in ("greedy@float32", "vanilla-fast@float32"):
        assert {str(line["arms"][kind]["tokens"]) for line in lines} == {
            str(lines[0]["arms"]["greedy@float32"]["tokens"])
        }
    stats = [line["arms"]["bild-fast@float32"]["stats"] for line in lines]
    assert all(own == stats[0] for own in stats)
    assert stats[0]["verifications"] > 0


def test_a_real_pair_is_scored_and_can_be_decoded_to_a_length(benchmark):
    kinds = ("--arms", "vanilla-fast,bild-fast", "--samples", 1, "--warmup", 0)
    code, out, err = benchmark("--large", "demo/large", "--small", "demo/small", *kinds)
    assert code == 0, err
    record = record_of(out)
    assert record.models.large.id == "demo/large"
    assert record.metric == "bleu"
    quality = record.arms[0].quality
    assert quality.low <= quality.value <= quality.high
    assert record.arms[1].as_planned is None
    code, out, err = benchmark(*kinds, "--lengths", "12")
    assert code == 0, err
    for line in lines_of(out):
        assert {len(arm["tokens"]) for arm in line["arms"].values()} == {12}


# ------------------------------------------------------------------------------ rivals


class EchoArm:
    """A new engine: it says its source again."""

    built = "echo 1.0"

    def __init__(self, kit, id):
        self.id = id

    def run(self, case):
        return Outcome(case.input_ids[0].tolist(), 0.5)

    def profile(self, case):
        return Profile(0.5, {"large": ModelTime(0.1, 0.3, 6)})


def test_a_new_engine_is_a_class_and_an_entry(benchmark, monkeypatch):
    monkeypatch.setitem(KINDS, "echo", Kind("Echo", ArmId("echo"), ("float32",), EchoArm))
    code, out, err = benchmark(*PAIR, "--samples", 1, "--warmup", 0, "--arms", "greedy,echo")
    assert code == 0, err
    record = record_of(out)
    echo = record.arms[1]
    assert (echo.title, echo.built, echo.seconds.median) == ("Echo", "echo 1.0", 0.5)
    assert echo.encoder_share == pytest.approx(0.2)
    assert echo.outside_share == pytest.approx(0.2)
    assert echo.as_planned == 0
    assert "Echo" in out


def test_rivals_leave_the_shared_models_as_they_are(monkeypatch):
    large, small = (tiny_t5(seed, vocab=40) for seed in (1, 2))
    before = {id(m): (m.generation_config, m.forward) for m in (large, small)}
    schedule = small.generation_config.num_assistant_tokens_schedule
    kit = Kit((large, small), BiLDConfig(), torch.device("cpu"), Path("unused"), "f")
    seen = []

    def noted(model, *args, **kwargs):
        seen.append((small.generation_config is before[id(small)][0], large.forward))
        return generate(model, *args, **kwargs)

    generate = type(large).generate
    monkeypatch.setattr(type(large), "generate", noted)
    case = Case(torch.tensor([[5, 6, 1]]), 6)
    plain = TransformersArm(kit, ArmId("greedy")).run(case)
    for name in ("heuristic", "constant"):
        arm = TransformersArm(kit, ArmId(name), schedule=name)
        assert (
            arm.options["assistant_model"].generation_config.num_assistant_tokens_schedule == name
        )
        assert arm.run(case).tokens == plain.tokens
        assert arm.profile(case).models["large"].forwards > 0
    assert small.generation_config.num_assistant_tokens_schedule == schedule
    assert all(unchanged for unchanged, _ in seen)
    for model in (large, small):
        config, forward = before[id(model)]
        assert (model.generation_config, model.forward) == (config, forward)
        assert not any(module._forward_hooks for module in model.modules())


def test_nothing_is_hooked_or_patched_while_an_arm_is_timed(monkeypatch):
    """What the clock finds must not be the clock."""
    large, small = (tiny_t5(seed, vocab=40) for seed in (1, 2))
    methods = {n: getattr(Decoder, n) for n in ("read", "feed", "draft", "verify", "rollback_to")}
    inside = []

    def watched(device, call):
        models = [m for model in (large, small) for m in model.modules()]
        inside.append(
            not any(m._forward_hooks or m._forward_pre_hooks for m in models)
            and all(getattr(Decoder, n) is method for n, method in methods.items())
        )
        return call(), 0.25

    monkeypatch.setattr("bild.evaluation.own.timed", watched)
    monkeypatch.setattr("bild.benchmark.rivals.timed", watched)
    kit = Kit((large, small), BiLDConfig(), torch.device("cpu"), Path("unused"), "f")
    case = Case(torch.tensor([[5, 6, 1]]), 6)
    for name in ("greedy", "assisted-constant", "bild-transformers", "vanilla-fast", "small-fast"):
        (arm,) = parse_arms([name], ["float32"])
        assert kind_of(arm).make(kit, arm).run(case).seconds == 0.25
    assert inside == [True] * 5


def test_the_small_model_of_an_arm_may_have_a_precision_of_its_own():
    (arm,) = parse_arms(["bild-ahead-compiled@float32/int8"], ["bfloat16"])
    assert (arm.precision, arm.small_precision) == ("float32", "int8")
    assert str(arm) == "bild-compiled-ahead@float32/int8"
    models = tuple(tiny_t5(seed, vocab=40, head_width=16) for seed in (1, 2))
    kit = Kit(models, BiLDConfig(), torch.device("cpu"), Path("unused"), "f")
    made = kind_of(arm).make(kit, arm)
    assert made.id == arm
    assert made.run(Case(torch.tensor([[5, 6, 1]]), 6)).tokens
    for name in ("vanilla-compiled@float32/int8", "bild-fast@float32/int8"):
        with pytest.raises(BildError, match="precision of the small model"):
            parse_arms([name], ["float32"])


def test_a_decoder_with_a_clock_passes_everything_on():
    """A method that it lacked would run as of the base class, past the engine's own."""
    public = {name for name, value in vars(Decoder).items() if callable(value) and name[0] != "_"}
    through_read = {"read_later", "ready"}
    assert public - through_read <= set(vars(_TimedDecoder))


@pytest.mark.parametrize("name", ["bild-transformers", "bild-fast", "vanilla-fast", "small-fast"])
def test_a_profile_decodes_the_same_and_adds_up(name):
    large, small = (tiny_t5(seed, vocab=40) for seed in (1, 1))
    kit = Kit((large, small), BiLDConfig(), torch.device("cpu"), Path("unused"), "f")
    (id,) = parse_arms([name], ["float32"])
    arm = kind_of(id).make(kit, id)
    case = Case(torch.tensor([[5, 6, 7, 1]]), 12)
    outcome, profile = arm.run(case), arm.profile(case)
    counts = {"large": outcome.stats.large_forwards, "small": outcome.stats.small_forwards}
    ran = {n: m.forwards for n, m in profile.models.items()}
    assert ran == {n: count for n, count in counts.items() if count}
    assert 0 < profile.encoder_share < 1
    assert 0 <= profile.outside_share < 1


# ------------------------------------------------------------------------------ bad input


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
        (("--batch-sizes", "4,0"), "a batch size must be from 1 to 10000, got 0"),
        (("--batch-sizes", "4", "--lengths", "9"), "batch sizes or output lengths, not both"),
        (("--lengths", "1"), "an output length must be from 2 to 1000000, got 1"),
        (("--large", "nowhere"), "nowhere"),
        ((*PAIR, "--arms", "bild-compiled@float16"), "unknown precision of bild-compiled"),
    ],
)
def test_mistakes_end_with_a_sentence(benchmark, arguments, message):
    code, _, err = benchmark(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
