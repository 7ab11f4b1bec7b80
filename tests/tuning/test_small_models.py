"""Small models compared: the rules, every figure against another way to it, and nothing twice."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from commands import run_here, script
from filelock import FileLock
from launching import run_processes, together
from mirror import CALLS, PAIRS
from toy import COSTS
from transformers import AutoTokenizer

from bild import BiLDConfig, BildError, BiLDModel
from bild.checkpoints.loading import load_model
from bild.config import EvalConfig, GridConfig
from bild.evaluation import run as evaluation
from bild.evaluation.own import OwnArm
from bild.evaluation.record import Interval
from bild.pictures import save
from bild.show.own import small_models_sweeps
from bild.show.plots import draw_folders
from bild.show.tables import small_models_table
from bild.tasks import metrics
from bild.tasks.registry import TASKS, Thresholds
from bild.tasks.sources import locate
from bild.tuning import prices
from bild.tuning.record import Chosen, GridPoint, SmallModelsRecord
from bild.tuning.rollback import RollbackArm, RollbackRow
from bild.tuning.small_models import GOALS, choose

TASK = TASKS["iwslt2017"]
SPLITS = {"validation": PAIRS[:5], "test": PAIRS[5:]}
GRID = [(f, r) for f in (0.5, 0.8) for r in (1.0, 3.0)]
LENGTH = 6


# ------------------------------------------------------------------------------ the rules


def point(loss, speedup, fallback=0.5):
    return GridPoint(fallback, 2.0, {}, loss, speedup, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("allowed", "points", "chosen", "met"),
    [
        # the fastest that loses at most so much; exactly so much is allowed
        (1.0, [(0.2, 1.3), (1.0, 1.5), (1.01, 1.9)], 1, True),
        (0.0, [(0.0, 1.1), (-0.4, 1.05), (0.3, 1.4)], 0, True),
        # equally fast: that which loses least
        (1.0, [(0.5, 1.5), (-0.1, 1.5), (0.2, 1.5)], 1, True),
        # all lose more: that which loses least, of equally good ones the fastest
        (0.0, [(0.6, 1.2), (0.3, 1.1), (0.3, 1.4), (0.9, 2.0)], 2, False),
        # gains do not make a slow pair the best
        (0.0, [(-2.0, 1.1), (-0.1, 1.2)], 1, True),
    ],
)
def test_operating_points(allowed, points, chosen, met):
    points = [point(*p) for p in points]
    assert choose(points, allowed) == (points[chosen], met)


def test_grid_is_sorted_and_each_threshold_once():
    assert GridConfig((0.6, 0.2, 0.6), (3, 1)) == GridConfig((0.2, 0.6), (1, 3))


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def command(mirror, monkeypatch, capsys, tmp_path):
    """The script in this process, on tiny models, with prices that are always the same."""
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for name, pairs in SPLITS.items():
        write(tmp_path / f"{name}.jsonl", pairs, "de", "en")
    monkeypatch.setattr(prices, "measure_costs", lambda works, _: [COSTS] * len(works))
    return partial(
        run_here, monkeypatch, capsys, "iwslt2017", "--max-new-tokens", LENGTH, "--warmup", 0,
        "--data-file", "validation.jsonl", "--test-file", "test.jsonl",
        "--small", f"unaligned={TASK.small}", f"control={TASK.small}", f"aligned={TASK.aligned}",
        "--fallbacks", 0.5, 0.8, "--rollbacks", 1, 3, name="compare_small_models",
    )  # fmt: skip


def write(path, pairs, source, target):
    lines = (json.dumps({source: s, target: t}, ensure_ascii=False) + "\n" for s, t in pairs)
    path.write_text("".join(lines), encoding="utf-8")


def loaded(done):
    return SmallModelsRecord.load(done.require_success().path)


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows with every example decoded by an arm; `stop` raises at that length."""
    counted = []
    counted_until = [None]

    def counting(original):
        def run(arm, case):
            if len(counted) == counted_until[0]:
                raise KeyboardInterrupt
            counted.append(1)
            return original(arm, case)

        return run

    for kind in (OwnArm, RollbackArm):
        monkeypatch.setattr(kind, "run", counting(kind.run))
    return counted, counted_until


def test_every_figure_is_what_the_models_do(command, mirror, tmp_path, decoded):
    record = loaded(command("--record", "small-models.json"))
    assert SmallModelsRecord.load(tmp_path / "small-models.json") == record
    timed = {(a.id.label, a.id.thresholds): a for a in record.arms if a.id.kind == "bild"}
    arms = 1 + 3 + len(timed)
    # The large model once, and "control", which is the same model as "unaligned", not at all.
    assert len(decoded[0]) == 8 * (1 + 2 * len(GRID)) + 3 * arms

    tokenizer = AutoTokenizer.from_pretrained(mirror.models / TASK.tokenizer)
    options = {"max_new_tokens": LENGTH, "do_sample": False, "num_beams": 1}
    options["return_dict_in_generate"] = True
    for label, small in (("unaligned", TASK.small), ("aligned", TASK.aligned)):
        pair = BiLDModel.from_pretrained(TASK.large, small)
        for split, examples in SPLITS.items():
            references = [target for _, target in examples]
            sources = [tokenizer(source, return_tensors="pt") for source, _ in examples]
            text = lambda o: tokenizer.decode(o.sequences[0], skip_special_tokens=True)  # noqa: E731
            large = metrics.score("bleu", [text(pair.greedy(**s, **options)) for s in sources],
                                  references).value  # fmt: skip
            assert record.large[split] == {"bleu": large}
            points = {(p.fallback, p.rollback): p for p in record.sweeps[label][split]}
            assert list(points) == GRID
            for thresholds, p in points.items():
                bild = BiLDConfig(*thresholds, variant=TASK.variant)
                outputs = [pair.generate(**s, bild_config=bild, **options) for s in sources]
                score = metrics.score("bleu", [text(o) for o in outputs], references).value
                assert p.scores == {"bleu": score}
                assert p.loss == large - score
                forwards = sum(o.stats.large_forwards for o in outputs)
                tokens = sum(o.stats.generated_tokens for o in outputs)
                assert p.large_forward_rate == pytest.approx(100 * forwards / tokens)
                arm = timed.get((label, Thresholds(*thresholds)))
                if split == "test" and arm is not None:
                    assert arm.quality["bleu"].value == score
                    assert arm.stats.large_forwards == forwards
    assert record.sweeps["control"] == record.sweeps["unaligned"]
    for label, points in record.sweeps.items():
        for goal, allowed in GOALS.items():
            at = record.chosen[label][goal]
            kept = [p for p in points["validation"] if p.loss <= allowed]
            pair = Thresholds(at.fallback, at.rollback)
            assert at.met == bool(kept)
            if kept:
                best = max(p.speedup for p in kept)
                assert best in [p.speedup for p in kept if p.thresholds == pair]
            assert (label, pair) in timed
    assert [(d.goal, d.model, d.against) for d in record.differences] == [
        (goal, "aligned", other)
        for goal in ("small alone", *GOALS)
        for other in ("unaligned", "control")
    ]
    alone = [record.arm("small", label=n).quality["bleu"].value for n in ("aligned", "unaligned")]
    assert record.differences[0].quality["bleu"].value == pytest.approx(alone[0] - alone[1])
    assert (record.validation.samples, record.data.samples) == (5, 3)
    assert record.arm("vanilla").built.startswith("fast, float32")


def test_stopped_anywhere_it_goes_on_and_decodes_nothing_twice(command, tmp_path, decoded):
    counted, until = decoded
    whole = loaded(command("--output-dir", "whole"))
    total, arms = len(counted), len(whole.arms)
    # In the large model alone, in the grids of both splits, within the arms of a timed example.
    stops = [3, 20, 47, 66, total - arms - 2]
    assert stops == sorted(stops)
    counted.clear()
    for stop in stops:
        until[0] = stop
        assert command("--output-dir", "stopped").code == 130
        assert len(counted) == stop
    until[0] = None
    (lock,) = tmp_path.glob("stopped/iwslt2017/small-models-*/lock")
    with FileLock(lock):
        refused = command("--output-dir", "stopped")
    assert refused.code == 2
    assert "another comparison is at work in" in refused.err
    assert len(counted) == stop
    resumed = loaded(command("--output-dir", "stopped"))
    timed_again = len(counted) - total
    assert 0 < timed_again < arms  # only the example that was being timed
    for name in ("sweeps", "chosen", "large", "models", "data", "validation"):
        assert getattr(resumed, name) == getattr(whole, name), name
    for ours, theirs in zip(resumed.arms, whole.arms, strict=True):
        assert (ours.id, ours.quality, ours.stats) == (theirs.id, theirs.quality, theirs.stats)

    before = len(counted)
    again = command("--output-dir", "stopped")
    assert [a.speed for a in loaded(again).arms] == [a.speed for a in resumed.arms]
    assert len(counted) == before
    # A wider grid decodes what is new.
    command("--output-dir", "stopped", "--rollbacks", 1, 3, 6).require_success()
    assert len(counted) - before <= 2 * 2 * 8 + 3 * (arms + 6)


def launch(command, out, count, killed):
    """Exit codes of processes that share a comparison; one of a rank is killed at an arm's run."""

    def process(rank):
        def until(arm, case, run, phase, seen):
            seen.append(arm)
            if len(seen) == 1:  # all take part in the grid, and in what is timed
                together(out.with_name(f"{out.name}-{phase}"), rank, count)
            if (rank, phase, len(seen)) == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(arm, case)

        row, own, rows, timed = RollbackArm.run, OwnArm.run, [], []
        RollbackArm.run = lambda arm, case: until(arm, case, row, "grid", rows)
        OwnArm.run = lambda arm, case: (
            until(arm, case, own, "timed", timed) if arm.id.label else own(arm, case)
        )
        done = command("--output-dir", out)
        out.with_name(f"{out.name}-said-{rank}").write_text(done.out + done.err)
        os._exit(done.code)

    return run_processes(count, process)


def test_processes_make_the_record_of_one_and_a_killed_one_loses_nothing(command, tmp_path):
    whole = command("--output-dir", "alone")
    alone = loaded(whole)
    kept = {p.relative_to(whole.path.parent.parent) for p in whole.path.parent.parent.rglob("*")}

    def require_same(path):
        record = SmallModelsRecord.load(path)
        for name in ("sweeps", "chosen", "large", "costs", "models", "data", "validation"):
            assert getattr(record, name) == getattr(alone, name), name
        for ours, theirs in zip(record.arms, alone.arms, strict=True):
            assert (ours.id, ours.quality, ours.stats) == (theirs.id, theirs.quality, theirs.stats)
        assert [d.quality for d in record.differences] == [d.quality for d in alone.differences]
        folder = path.parent.parent
        assert {p.relative_to(folder) for p in folder.rglob("*")} == kept
        return record

    # One of three is killed when examples are timed: the others take over.
    codes = launch(command, tmp_path / "timed", 3, killed=(1, "timed", 3))
    assert codes == [0, -signal.SIGKILL, 0]
    (path,) = tmp_path.glob("timed/*/*/timed-*/record.json")
    record = require_same(path)
    assert str(path) in (tmp_path / "timed-said-0").read_text()
    assert (tmp_path / "timed-said-2").read_text() == ""
    own = record.processes
    assert (len(own), sum(p.samples for p in own)) == (2, len(SPLITS["test"]))
    for arm in record.arms:
        assert sum(p.seconds[str(arm.id)] for p in own) == pytest.approx(arm.speed.seconds)
    assert "2 process(es)" in record.timing.interval
    assert alone.processes == ()

    # The first is killed in the grid: the other one finishes it, and one process does the rest.
    codes = launch(command, tmp_path / "grid", 2, killed=(0, "grid", 3))
    assert codes == [-signal.SIGKILL, 2]
    said = (tmp_path / "grid-said-1").read_text()
    assert "the first process has ended before what to time was in" in said
    assert require_same(command("--output-dir", "grid").path).processes == ()


def test_a_grid_that_test_examples_are_spared_chooses_and_times_the_same(command, decoded):
    full = loaded(command("--output-dir", "full"))
    before = len(decoded[0])
    short = loaded(command("--output-dir", "short", "--no-on-test"))
    assert len(decoded[0]) - before < before
    assert short.chosen == full.chosen
    assert [(a.id, a.quality) for a in short.arms] == [(a.id, a.quality) for a in full.arms]
    assert {split for own in short.sweeps.values() for split in own} == {"validation"}
    assert all("validation examples" in sweep.title for sweep in small_models_sweeps(short))


def test_examples_of_a_grid_tell_no_seconds(command):
    """Most of them are looked up: a dictionary's seconds are not a decoding's."""
    done = command().require_success()
    grids = [
        arm
        for path in done.path.parent.parent.glob("*/*/[0-9]*.jsonl")
        for line in path.open(encoding="utf-8")
        for arm in json.loads(line)["arms"].values()
    ]
    assert len(grids) == 2 * 8 * len(GRID)
    assert {(arm["seconds"], arm["encoder_seconds"]) for arm in grids} == {("nan", None)}


def test_api_is_scored_by_both_of_its_metrics(mirror, monkeypatch, capsys, tmp_path):
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for name, calls in (("validation", CALLS[:2]), ("test", CALLS[2:])):
        write(tmp_path / f"{name}.jsonl", calls, "description", "api")
    done = run_here(
        monkeypatch, capsys, "api", "--max-new-tokens", LENGTH, "--data-file", "validation.jsonl",
        "--test-file", "test.jsonl", "--small", f"unaligned={TASKS['api'].small}",
        "--fallbacks", 0.5, "--rollbacks", 2, name="compare_small_models",
    )  # fmt: skip
    record = loaded(done)
    assert list(record.metrics) == list(record.large["test"]) == ["bleu", "rougeL"]
    (p,) = record.sweeps["unaligned"]["validation"]
    assert p.loss == record.large["validation"]["bleu"] - p.scores["bleu"]
    assert record.differences == ()
    assert "BLEU [95 %]" in done.out
    assert "ROUGE-L [95 %]" in done.out
    # One pair is both operating points, and is timed once.
    assert [(a.id.kind, a.id.label, a.id.thresholds) for a in record.arms] == [
        ("vanilla", "", None),
        ("small", "unaligned", None),
        ("bild", "unaligned", Thresholds(0.5, 2)),
    ]
    assert min(v for n, v in record.costs["unaligned"].items() if n != "large_token") > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--small", "demo/small"), "--small must be label=model, as aligned=my/aligned"),
        (("--small", "a b=demo/small"), "--small must be label=model"),
        (("--small", "a=x", "a=y"), "--small has the label 'a' twice"),
        (("--fallbacks", "-0.1"), "fallbacks must be thresholds, each at least 0"),
        (("--rollbacks", "1", "inf"), "rollbacks must be thresholds, each at least 0 and finite"),
        (("--small", "a=no/such"), "no/such"),
        (("--test-file", "nowhere.jsonl"), "data file 'nowhere.jsonl' does not exist"),
        (("--test-file", "validation.jsonl"), "validation and test examples are the same"),
    ],
)
def test_bad_input_is_refused_with_one_sentence(command, arguments, message):
    done = command(*arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_pair_with_another_small_model_shares_the_large_one(command, mirror):
    first = BiLDModel.from_pretrained(TASK.large, TASK.small)
    aligned = load_model(TASK.aligned, torch.float32, "cpu")
    second = first.with_small(aligned)
    assert second.engine is first.engine
    assert second.small is aligned
    assert first.small is not aligned
    assert second.models["small"].model is aligned
    aligned.generation_config.eos_token_id = 5
    with pytest.raises(BildError, match="eos_token_id differ"):
        first.with_small(aligned)


def test_only_thresholds_that_matter_are_decoded(command, monkeypatch):
    """Rising rollback thresholds, with every variant: the outputs of a decoding each, for less."""
    calls = []
    generate = BiLDModel.generate

    def counted(self, *args, **kwargs):
        calls.append(1)
        return generate(self, *args, **kwargs)

    rollbacks = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
    for variant in ("authors", "paper", "verified"):
        config = EvalConfig(
            "iwslt2017", "aligned", BiLDConfig(variant=variant), max_new_tokens=20,
            data_file="validation.jsonl",
        )  # fmt: skip
        work = evaluation.prepare(config, locate(config))
        cases = [item.case for item in work.loop().items]
        row, outcomes = RollbackRow(), set()
        for rollback in rollbacks:
            pair = work.with_thresholds(Thresholds(0.5, rollback))
            plain = OwnArm("bild", pair.runner, pair.config.bild)
            expected = [plain.run(case) for case in cases]
            monkeypatch.setattr(BiLDModel, "generate", counted)
            decoded = [row.arm(pair).run(case) for case in cases]
            monkeypatch.setattr(BiLDModel, "generate", generate)
            for ours, theirs in zip(decoded, expected, strict=True):
                assert ours.tokens == theirs.tokens
                assert ours.stats == theirs.stats
            outcomes.add(tuple(tuple(o.tokens) for o in decoded))
        assert len(outcomes) > 2  # the thresholds do matter
    assert len(calls) < 0.8 * 3 * len(rollbacks) * len(cases)


# ------------------------------------------------------------------------------ shown


def test_tables_and_picture_show_the_record(command, monkeypatch, tmp_path):
    record = loaded(command("--record", "results/mine/small-models.json"))
    point, other = Chosen(0.5, 1.0, True), Chosen(0.8, 3.0, False)
    figures = {("aligned", 0.5, 1.0): (30.0, 1.5), ("unaligned", 0.8, 3.0): (20.0, 2.5)}
    known = next(a for a in record.arms if a.id.kind == "bild")
    pairs = [
        replace(
            known,
            id=replace(known.id, label=label, thresholds=Thresholds(*pair)),
            quality={"bleu": replace(known.quality["bleu"], value=score)},
            speed=replace(known.speed, speedup=Interval(speed, speed - 0.1, speed + 0.1)),
        )
        for (label, *pair), (score, speed) in figures.items()
    ]
    shown = replace(
        record,
        chosen={
            "unaligned": {"no loss": other, "one point": replace(other, met=True)},
            "aligned": {"no loss": point, "one point": point},
        },
        arms=(*(a for a in record.arms if a.id.kind != "bild"), *pairs),
    )
    lines = small_models_table(shown).splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert names[2:7] == [
        "large alone",
        "unaligned alone",
        "aligned alone",
        "BiLD unaligned: nearest to no loss, one point (0.8, 3)",
        "BiLD aligned: no loss, one point (0.5, 1)",
    ]
    assert "**2.50x [2.40, 2.60]**" in lines[5]
    assert "**30.00 [" in lines[6]
    assert "aligned against control" in small_models_table(record)
    assert "5 validation examples" in lines[-1]
    assert "Timed on 3 test examples" in lines[-1]

    readme = tmp_path / "README.md"
    readme.write_text("<!-- small-models: mine -->\n<!-- end -->\n")
    monkeypatch.setattr("sys.argv", ["make_tables.py", "--readme", str(readme)])
    script("make_tables").main()
    assert small_models_table(record) in readme.read_text()

    (picture,) = draw_folders([tmp_path / "results/mine"])
    assert picture.name == "thresholds-mine"
    save(picture.figure, tmp_path / "thresholds.svg", picture.title)
    svg = (tmp_path / "thresholds.svg").read_text()
    for label, splits in record.sweeps.items():
        assert f"{label} (large alone" in svg
        for p in splits["test"]:
            assert f"{p.scores['bleu']:.1f}" in svg
            assert f"{p.speedup:.2f}" in svg
