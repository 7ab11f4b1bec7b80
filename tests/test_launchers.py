"""The launchers as they stand, every task in every mode, on a mirror of tiny checkpoints."""

from __future__ import annotations

import json
from functools import partial

import pytest
from commands import AT_ONCE, ROOT, run_command, run_here, run_two_at_a_time
from mirror import PUBLISHED, examples

from bild.tasks.registry import MODES, TASKS

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
SAMPLES = {
    ("iwslt2017", "vanilla"): 3,
    ("iwslt2017", "aligned"): 2,
    ("wmt2014", "vanilla"): 2,
    ("cnndm", "vanilla"): 1,
}


@pytest.fixture(scope="module")
def launched(mirror, tmp_path_factory):
    """Every launcher in every mode, each in a process and a working folder of its own."""
    home = tmp_path_factory.mktemp("launched")

    def launch(task, mode):
        command = ["bash", ROOT / f"run_{task}.sh", *COMMANDS[task, mode], *SHORT]
        return run_command(command, home / f"{task}-{mode}", mirror.environment)

    return run_two_at_a_time({run: partial(launch, *run) for run in COMMANDS})


@pytest.fixture(params=RUNS, ids="-".join)
def run(request, launched):
    """((task, mode), what the command left)."""
    return request.param, launched[request.param].require_success()


@pytest.fixture
def run_again(mirror, monkeypatch, capsys, tmp_path):
    """The script in this process, its results in a folder of their own."""
    for name, value in mirror.environment.items():
        monkeypatch.setenv(name, value)
    return partial(run_here, monkeypatch, capsys, *SHORT, "--output-dir", tmp_path)


# ------------------------------------------------------------------------------ the commands


def test_every_published_task_has_a_launcher_and_runs_in_every_mode():
    published = MODES[:3]  # nobody has published a drafter
    assert sorted(COMMANDS) == sorted((task, mode) for task in PUBLISHED for mode in published)
    assert all((ROOT / f"run_{task}.sh").is_file() for task in PUBLISHED)


def test_the_results_are_under_out_in_the_working_folder(run):
    (task, _), done = run
    folder = done.path.parent
    assert folder.parent == done.cwd / "out" / task
    assert sorted(p.name for p in folder.iterdir()) == [
        "identity",
        "lock",
        "run.json",
        "samples.jsonl",
    ]


def test_nothing_is_said_on_stderr_of_a_log(run):
    _, done = run
    assert done.err == ""


def test_the_record_says_what_was_asked_for(run):
    (task, mode), done = run
    record = done.record()
    assert (record.config.task, record.config.mode) == (task, mode)
    assert record.config.max_new_tokens == 12
    assert record.models.large.id == TASKS[task].large
    assert record.data.origin.startswith(f"$BILD_DATA_ROOT/{task}/validation.jsonl")
    if mode == "vanilla":
        assert record.config.bild is None
        assert record.models.small == {}
        return
    role = {"unaligned": "small", "aligned": "aligned"}[mode]
    assert record.models.small["small"].id == getattr(TASKS[task], role)
    bild = record.config.bild
    assert (bild.fallback_threshold, bild.rollback_threshold) == THRESHOLDS[task, mode]


def test_the_sample_limit_holds_in_every_mode(run):
    (task, mode), done = run
    expected = SAMPLES.get((task, mode), 4)
    data = done.record().data
    assert (data.samples, data.available) == (expected, 4)
    found = [(s["index"], s["source"], s["reference"]) for s in done.samples()]
    assert found == [(i, *pair) for i, pair in enumerate(examples(task)[:expected])]


def test_the_arms_are_those_of_the_mode(run):
    (task, mode), done = run
    arms = ["vanilla"] if mode == "vanilla" else ["vanilla", "bild", "small"]
    if "--no-small-alone" in COMMANDS[task, mode]:
        arms.remove("small")
    assert all(list(sample["arms"]) == arms for sample in done.samples())
    assert [arm.id.kind for arm in done.record().arms] == arms
    for arm, name in {"vanilla": "large alone", "bild": "BiLD", "small": "small alone"}.items():
        assert (f"\n{name} " in done.out) == (arm in arms)


def test_the_counts_are_those_of_the_samples(run):
    _, done = run
    for arm in done.record().arms:
        outputs = [sample["arms"][arm.id.kind] for sample in done.samples()]
        for name in outputs[0]["stats"]:
            total = sum(o["stats"][name] for o in outputs)
            assert getattr(arm.stats, name) == total, (arm.id, name)
        assert arm.stats.generated_tokens == sum(len(o["tokens"]) for o in outputs)


def test_the_metric_is_that_of_the_published_table(run):
    (task, _), done = run
    metric = {"xsum": "rougeL", "cnndm": "rougeLsum"}.get(task, "bleu")
    assert done.record().metric == metric


def test_the_published_rows_stand_under_the_table(run):
    (task, mode), done = run
    rows = [r for r in TASKS[task].published if r.mode == mode]
    assert rows
    for row in rows:
        assert f"{row.score:.2f} {row.metric}" in done.out


def test_run_json_is_strict_json(run):
    require_strict_json(run[1].path)


def require_strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# ------------------------------------------------------------------------------ one by one


def test_further_flags_pass_through(launched):
    def config(task, mode):
        return launched[task, mode].record().config

    assert config("iwslt2017", "aligned").bild.variant == "verified"
    assert config("iwslt2017", "unaligned").bild.variant == "authors"
    assert config("cnndm", "unaligned").bild.variant == "paper"
    assert config("cnndm", "unaligned").bild.start == "small"
    assert config("wmt2014", "unaligned").bild.num_small_iters == float("inf")
    assert config("wmt2014", "vanilla").seed == 7
    assert config("api", "vanilla").warmup == 0
    for task, mode in RUNS:
        dtype = "bfloat16" if "bfloat16" in COMMANDS[task, mode] else "float32"
        assert launched[task, mode].record().large.id.precision == dtype


def test_without_fallback_and_rollback_the_large_model_writes_one_token(launched):
    counts = launched["wmt2014", "unaligned"].record().arm("bild").stats
    assert counts.large_forwards == 4  # one an example
    assert counts.fallbacks == counts.rollbacks == 0
    assert counts.drafted_tokens == counts.generated_tokens - 4


def test_both_decisions_are_made_somewhere(launched):
    """Else the checks of counts above would compare zeros."""
    did = [launched[run].record().arm("bild").stats for run in RUNS if run[1] != "vanilla"]
    for name in ("fallbacks", "rollbacks", "verified_tokens"):
        assert sum(getattr(counts, name) > 0 for counts in did) >= 2, name


def test_api_has_no_aligned_mode(launched):
    done = launched["api", "aligned"]
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "api has no aligned small model" in done.err
    assert done.seconds < AT_ONCE


# ------------------------------------------------------------------------------ twice


@pytest.mark.parametrize("which", [("iwslt2017", "unaligned"), ("cnndm", "aligned")], ids="-".join)
def test_a_second_run_gives_the_same_texts_and_counts(which, launched, run_again):
    first, second = launched[which], run_again(which[0], *COMMANDS[which])
    assert second.outcome() == first.outcome()
    assert len(first.outcome()) == 4
    for field in ("data", "models"):
        assert getattr(second.record(), field) == getattr(first.record(), field)
    for ours, theirs in zip(second.record().arms, first.record().arms, strict=True):
        assert (ours.stats, ours.quality) == (theirs.stats, theirs.quality)


def test_a_finished_run_is_not_touched_by_the_next(run_again):
    first = run_again("wmt2014", "vanilla")
    before = {p.name: p.read_bytes() for p in first.path.parent.iterdir()}
    second = run_again("wmt2014", "vanilla")
    assert second.path != first.path
    assert {p.name: p.read_bytes() for p in first.path.parent.iterdir()} == before


def test_a_rule_is_part_of_what_a_run_is(run_again):
    rule = ("--rule", "typical:eps=0.2", "--drafting", "margin")
    done = run_again("iwslt2017", "aligned", *rule)
    bild = done.record().config.bild
    assert bild.acceptance == "typical:eps=0.2,delta=0.09"
    assert bild.drafting == "margin:least=0.3"
    assert f"{bild.drafting}, acceptance {bild.acceptance}" in done.out
    identity = (done.path.parent / "identity").read_text(encoding="utf-8")
    assert bild.acceptance in identity
    assert run_again("iwslt2017", "aligned", "--rule", "typcal").err.startswith(
        "error: acceptance rule must be one of exact, bild, topk, typical, lenient, regret, "
    )


def test_above_one_the_fallback_threshold_gives_the_large_model(run_again):
    done = run_again("iwslt2017", "aligned", "1.1")
    for sample in done.samples():
        assert sample["arms"]["bild"]["tokens"] == sample["arms"]["vanilla"]["tokens"]
    assert done.record().arm("bild").stats.drafted_tokens == 0
    require_strict_json(done.path)  # there was no verification to take a mean over
