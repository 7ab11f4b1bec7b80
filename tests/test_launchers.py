"""The launchers as they stand, every task in every mode, on a mirror of tiny checkpoints."""

from __future__ import annotations

import json
from functools import partial

import pytest
from commands import ROOT, run_command, run_here, run_two_at_a_time
from mirror import TASKS, examples

from bild.benchmarks import BENCHMARKS
from bild.config import BiLDConfig

SHORT = ("--max-new-tokens", "12")

# task -> what follows `bash run_<task>.sh` in each of its three runs.
COMMANDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("iwslt2017", "vanilla"): ("vanilla", "0.6", "2", "3"),
    ("iwslt2017", "unaligned"): ("unaligned",),
    ("iwslt2017", "aligned"): ("aligned", "0.7", "1.5", "2", "--variant", "verified"),
    ("wmt2014", "vanilla"): ("vanilla", "--max-eval-samples", "2", "--seed", "7"),
    ("wmt2014", "unaligned"): ("unaligned", "0", "inf", "--num-small-iters", "inf"),
    ("wmt2014", "aligned"): ("aligned",),
    ("xsum", "vanilla"): ("vanilla",),
    ("xsum", "unaligned"): (),
    ("xsum", "aligned"): ("aligned", "0.2", "0.5", "--dtype", "bfloat16", "--no-small-alone"),
    ("cnndm", "vanilla"): ("vanilla", "--max-eval-samples=1", "--dtype", "bfloat16"),
    ("cnndm", "unaligned"): ("unaligned", "0.3", "--variant", "paper", "--start", "small"),
    ("cnndm", "aligned"): ("aligned",),
    ("api", "vanilla"): ("vanilla", "--warmup", "0"),
    ("api", "unaligned"): ("unaligned",),
    ("api", "aligned"): ("aligned",),
}
RUNS = [run for run in COMMANDS if run != ("api", "aligned")]

# (fallback, rollback) of the runs above: those of the paper's tables where none were given.
THRESHOLDS = {
    ("iwslt2017", "unaligned"): (0.6, 2),
    ("iwslt2017", "aligned"): (0.7, 1.5),
    ("wmt2014", "unaligned"): (0, float("inf")),
    ("wmt2014", "aligned"): (0.8, 2),
    ("xsum", "unaligned"): (0.5, 3),
    ("xsum", "aligned"): (0.2, 0.5),
    ("cnndm", "unaligned"): (0.3, 3),
    ("cnndm", "aligned"): (0.3, 3),
    ("api", "unaligned"): (0.5, 5),
}
SAMPLES = {("iwslt2017", "vanilla"): 3, ("iwslt2017", "aligned"): 2, ("wmt2014", "vanilla"): 2}
SAMPLES[("cnndm", "vanilla")] = 1


@pytest.fixture(scope="module")
def launched(mirror, tmp_path_factory):
    """Every launcher in every mode, each in a process and a working folder of its own."""
    home = tmp_path_factory.mktemp("launched")

    def launch(task, mode):
        return run_command(
            ["bash", ROOT / f"run_{task}.sh", *COMMANDS[task, mode], *SHORT],
            home / f"{task}-{mode}",
            mirror.environment,
        )

    return home, run_two_at_a_time({run: partial(launch, *run) for run in COMMANDS})


@pytest.fixture(params=RUNS, ids="-".join)
def finished(request, launched):
    """(task, mode), what the command left, and the folder of its results."""
    home, results = launched
    task, mode = request.param
    done = results[request.param].require_success()
    return request.param, done, (home / f"{task}-{mode}" / done.path).parent


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def content(folder):
    """What must not change between two runs: texts, tokens and counts of every arm."""
    return [
        {name: (arm["text"], arm["tokens"], arm["stats"]) for name, arm in line["arms"].items()}
        for line in lines(folder)
    ]


def record_of(folder):
    from bild.record import RunRecord

    return RunRecord.load(folder / "run.json")


# ------------------------------------------------------------------------------ the commands


def test_every_published_task_has_a_launcher_and_runs_in_every_mode():
    assert sorted(COMMANDS) == sorted((t, m) for t in TASKS for m in THREE_MODES)
    assert all((ROOT / f"run_{task}.sh").is_file() for task in TASKS)


THREE_MODES = ("vanilla", "unaligned", "aligned")


def test_the_results_are_under_out_in_the_working_folder(finished):
    (task, _), _, folder = finished
    assert folder.parent.name == task
    assert folder.parent.parent.name == "out"
    assert sorted(p.name for p in folder.iterdir()) == ["identity", "run.json", "samples.jsonl"]


def test_nothing_is_said_on_stderr_but_the_progress(finished):
    _, done, _ = finished
    assert done.complaints == []
    assert "100%" in done.err


def test_the_record_says_what_was_asked_for(finished):
    (task, mode), _, folder = finished
    record = record_of(folder)
    assert (record.config["task"], record.config["mode"]) == (task, mode)
    assert record.config["max_new_tokens"] == 12
    assert record.models["large"]["id"] == BENCHMARKS[task].large
    assert record.data["origin"].startswith(f"$BILD_DATA_ROOT/{task}/validation.jsonl")
    if mode == "vanilla":
        assert record.config["bild"] is None
        assert list(record.models) == ["large"]
        return
    role = {"unaligned": "small", "aligned": "aligned"}[mode]
    assert record.models["small"]["id"] == getattr(BENCHMARKS[task], role)
    bild = BiLDConfig.from_dict(record.config["bild"])
    assert (bild.fallback_threshold, bild.rollback_threshold) == THRESHOLDS[task, mode]


def test_the_sample_limit_holds_in_every_mode(finished):
    run, _, folder = finished
    record = record_of(folder)
    expected = SAMPLES.get(run, 4)
    assert record.data["samples"] == expected
    assert record.data["available"] == 4
    found = [(line["index"], line["source"], line["reference"]) for line in lines(folder)]
    assert found == [(i, *pair) for i, pair in enumerate(examples(run[0])[:expected])]


def test_the_arms_are_those_of_the_mode(finished):
    (task, mode), done, folder = finished
    arms = ["vanilla"] if mode == "vanilla" else ["vanilla", "bild", "small"]
    if (task, mode) == ("xsum", "aligned"):
        arms.remove("small")
    assert all(list(line["arms"]) == arms for line in lines(folder))
    record = record_of(folder)
    assert list(record.decoding) == arms
    names = {"vanilla": "large alone", "bild": "BiLD", "small": "small alone"}
    for arm, name in names.items():
        assert (f"\n{name} " in done.out) == (arm in arms)


def test_the_counts_are_those_of_the_samples(finished):
    _, _, folder = finished
    record = record_of(folder)
    for arm, sums in record.decoding.items():
        stats = [line["arms"][arm]["stats"] for line in lines(folder)]
        for name in stats[0]:
            assert sums[name] == sum(s[name] for s in stats), (arm, name)
        assert sums["generated_tokens"] == sum(
            len(line["arms"][arm]["tokens"]) - 1 for line in lines(folder)
        )


def test_the_metric_is_that_of_the_published_table(finished):
    (task, _), _, folder = finished
    metric = {"iwslt2017": "bleu", "wmt2014": "bleu", "api": "bleu", "xsum": "rougeL"}
    quality = record_of(folder).quality
    assert quality["metric"] == metric.get(task, "rougeLsum")
    assert quality["vanilla"]["signature"]


def test_the_published_rows_stand_under_the_table(finished):
    (task, mode), done, _ = finished
    rows = [r for r in BENCHMARKS[task].published if r.mode == mode]
    assert rows
    for row in rows:
        assert f"{row.score:.2f} {row.metric}" in done.out


def test_run_json_is_strict_json(finished):
    _, _, folder = finished

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((folder / "run.json").read_text(), parse_constant=refuse)


# ------------------------------------------------------------------------------ one by one


def test_further_flags_pass_through(launched):
    home, results = launched

    def record(task, mode):
        return record_of(
            (home / f"{task}-{mode}" / results[task, mode].require_success().path).parent
        )

    assert record("iwslt2017", "aligned").config["bild"]["variant"] == "verified"
    assert record("iwslt2017", "unaligned").config["bild"]["variant"] == "authors"
    paper = record("cnndm", "unaligned")
    assert (paper.config["bild"]["variant"], paper.config["bild"]["start"]) == ("paper", "small")
    assert record("wmt2014", "unaligned").config["bild"]["num_small_iters"] == "inf"
    assert record("wmt2014", "vanilla").config["seed"] == 7
    assert record("api", "vanilla").config["warmup"] == 0
    for run in (("xsum", "aligned"), ("cnndm", "vanilla")):
        assert record(*run).env["dtype"] == "bfloat16"
    assert record("xsum", "unaligned").env["dtype"] == "float32"


def test_without_fallback_and_rollback_the_large_model_writes_one_token(launched):
    home, results = launched
    done = results["wmt2014", "unaligned"].require_success()
    counts = record_of((home / "wmt2014-unaligned" / done.path).parent).decoding["bild"]
    assert counts["large_forwards"] == 4  # one an example
    assert counts["fallbacks"] == counts["rollbacks"] == 0
    assert counts["drafted_tokens"] == counts["generated_tokens"] - 4


def test_both_decisions_are_made_somewhere(launched):
    """Else the launchers' checks of counts would compare zeros."""
    home, results = launched
    did = {}
    for (task, mode), done in results.items():
        if done.code == 0 and mode != "vanilla":
            did[task, mode] = record_of((home / f"{task}-{mode}" / done.path).parent).decoding
    for name in ("fallbacks", "rollbacks", "verified_tokens"):
        assert sum(d["bild"][name] > 0 for d in did.values()) >= 2, name


def test_api_has_no_aligned_mode(launched):
    done = launched[1]["api", "aligned"]
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert "api has no aligned small model" in done.err


# ------------------------------------------------------------------------------ twice


@pytest.mark.parametrize("run", [("iwslt2017", "unaligned"), ("cnndm", "aligned")], ids="-".join)
def test_a_second_run_gives_the_same_texts_and_counts(
    run, launched, mirror, monkeypatch, capsys, tmp_path
):
    home, results = launched
    first = (home / "-".join(run) / results[run].require_success().path).parent
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    again = run_here(
        monkeypatch, capsys, run[0], *COMMANDS[run], *SHORT, "--output-dir", tmp_path
    ).require_success()
    assert content(again.path.parent) == content(first)
    assert len(content(first)) == 4
    mine, theirs = again.record(), record_of(first)
    assert mine.data == theirs.data
    assert mine.models == theirs.models
    assert mine.decoding == theirs.decoding


def test_a_finished_run_is_not_touched_by_the_next(mirror, monkeypatch, capsys, tmp_path):
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    command = ("wmt2014", "vanilla", *SHORT, "--output-dir", tmp_path)
    first = run_here(monkeypatch, capsys, *command).require_success()
    before = {p.name: p.read_bytes() for p in first.path.parent.iterdir()}
    second = run_here(monkeypatch, capsys, *command).require_success()
    assert second.path != first.path
    assert {p.name: p.read_bytes() for p in first.path.parent.iterdir()} == before


def test_above_one_the_fallback_threshold_gives_the_large_model(
    mirror, monkeypatch, capsys, tmp_path
):
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    done = run_here(
        monkeypatch, capsys, "iwslt2017", "aligned", "1.1", *SHORT, "--output-dir", tmp_path
    ).require_success()
    for line in lines(done.path.parent):
        assert line["arms"]["bild"]["tokens"] == line["arms"]["vanilla"]["tokens"]
    assert done.record().decoding["bild"]["drafted_tokens"] == 0
    test_run_json_is_strict_json((None, None, done.path.parent))
