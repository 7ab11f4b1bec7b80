"""The task table: complete, consistent, and equal to what was published."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict

import pytest
from mirror import PUBLISHED

from bild.checkpoints.names import REPOSITORY_ROOT
from bild.config import BiLDConfig
from bild.errors import BildError
from bild.tasks.metrics import METRICS
from bild.tasks.registry import MODES, TASKS, Thresholds, get, published_rows


def test_names():
    assert {*PUBLISHED, "demo"} <= set(TASKS)
    assert all(get(name).name == name for name in TASKS)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(BildError, match=r"unknown task 'iwslt'.*iwslt2017.*demo"):
        get("iwslt")


def test_entries_are_frozen_and_json_ready():
    with pytest.raises(FrozenInstanceError):
        get("xsum").prefix = ""
    for task in TASKS.values():
        assert json.loads(json.dumps(asdict(task)))["name"] == task.name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    task = get(name)
    assert (task.max_source_tokens, task.max_new_tokens) == (1024, 128)
    assert task.split == "validation" == task.data.split
    checkpoints = (task.large, task.small, task.aligned)
    assert len(set(checkpoints)) == 3
    assert all(id.count("/") == 1 for id in checkpoints if id is not None)


@pytest.mark.parametrize(
    ("name", "prefix", "metric", "tokenizer", "keys"),
    [
        ("iwslt2017", "", "bleu", "google/mt5-small", ("de", "en")),
        ("wmt2014", "", "bleu", "google/mt5-small", ("de", "en")),
        ("xsum", "summarize: ", "rougeL", "google-t5/t5-small", ("document", "summary")),
        ("cnndm", "summarize: ", "rougeLsum", "google-t5/t5-small", ("document", "summary")),
        ("api", "description for api: ", "bleu", None, ("description", "api")),
        ("demo", "", "bleu", None, ("de", "en")),
    ],
)
def test_text_settings(name, prefix, metric, tokenizer, keys):
    task = get(name)
    assert task.prefix == prefix
    assert task.metric == metric
    assert task.tokenizer == tokenizer
    assert (task.source_key, task.target_key) == keys


@pytest.mark.parametrize("name", list(TASKS))
def test_metrics_are_known(name):
    task = get(name)
    assert {task.metric, *task.more_metrics} <= set(METRICS)
    assert {row.metric for row in task.published} <= {
        task.metric,
        *task.more_metrics,
    }


# fallback, rollback of both presets, as published
@pytest.mark.parametrize(
    ("name", "mode", "presets"),
    [
        ("iwslt2017", "unaligned", [(0.6, 2), (0.5, 3)]),
        ("iwslt2017", "aligned", [(0.9, 3), (0.6, 4)]),
        ("wmt2014", "unaligned", [(0.6, 2), (0.5, 3)]),
        ("wmt2014", "aligned", [(0.8, 2), (0.6, 5)]),
        ("xsum", "unaligned", [(0.5, 3), (0.3, 5)]),
        ("xsum", "aligned", [(0.6, 2), (0.4, 5)]),
        ("cnndm", "unaligned", [(0.4, 3), (0.2, 6)]),
        ("cnndm", "aligned", [(0.3, 3), (0.2, 6)]),
        ("api", "unaligned", [(0.5, 5)]),
        ("demo", "unaligned", [(0.6, 2), (0.2, 5)]),
        ("demo", "aligned", [(0.6, 2), (0.2, 5)]),
        ("demo", "drafter", [(0.7, 0.69), (0.5, 2)]),
    ],
)
def test_presets(name, mode, presets):
    assert get(name).thresholds[mode] == tuple(Thresholds(*preset) for preset in presets)
    assert get(name).default_thresholds(mode) == Thresholds(*presets[0])


@pytest.mark.parametrize("name", list(TASKS))
def test_a_mode_has_presets_exactly_when_it_has_a_small_model(name):
    task = get(name)
    models = {"unaligned": task.small, "aligned": task.aligned, "drafter": task.drafter}
    assert set(task.thresholds) == {mode for mode, model in models.items() if model is not None}
    assert {row.mode for row in task.published} <= {*MODES, "small"}


def test_presets_are_the_rows_of_the_published_tables():
    for name in PUBLISHED:
        task = get(name)
        for mode, presets in task.thresholds.items():
            for source in ("paper", "reproduction") if name != "api" else ("reproduction",):
                rows = [
                    Thresholds(row.fallback, row.rollback)
                    for row in task.published
                    if (row.source, row.mode, row.metric) == (source, mode, task.metric)
                    and not row.note
                ]
                assert set(rows) == set(presets), (name, mode, source)


# The tables as printed: score, speedup and (RB, FB) of each task in turn.
PAPER = """
unaligned 40.33 1.43 (2,0.6) 31.28 1.34 (2,0.6) 35.12 1.48 (3,0.5) 41.44 1.71 (3,0.4)
unaligned 39.44 1.58 (3,0.5) 30.47 1.43 (3,0.5) 34.02 1.72 (5,0.3) 40.57 2.05 (6,0.2)
aligned   40.24 1.62 (3,0.9) 31.26 1.47 (2,0.8) 35.05 1.50 (2,0.6) 41.52 1.85 (3,0.3)
aligned   39.13 1.78 (4,0.6) 30.33 1.70 (5,0.6) 33.95 1.80 (5,0.4) 40.96 2.12 (6,0.2)
"""
REPRODUCTION = """
vanilla   40.33 1.00 -       31.88 1.00 -       35.10 1.00 -       41.54 1.00 -
unaligned 40.33 1.46 (2,0.6) 31.65 1.27 (2,0.6) 35.12 1.40 (3,0.5) 41.44 1.54 (3,0.4)
unaligned 39.44 1.61 (3,0.5) 30.83 1.34 (3,0.5) 34.02 1.54 (5,0.3) 40.56 1.87 (6,0.2)
aligned   40.09 1.52 (3,0.9) 31.65 1.37 (2,0.8) 34.96 1.41 (2,0.6) 41.33 1.48 (3,0.3)
aligned   39.15 1.73 (4,0.6) 30.54 1.65 (5,0.6) 33.96 1.73 (5,0.4) 40.79 1.67 (6,0.2)
"""


@pytest.mark.parametrize(("source", "table"), [("paper", PAPER), ("reproduction", REPRODUCTION)])
@pytest.mark.parametrize("column", range(4))
def test_published_tables(source, table, column):
    task = get(PUBLISHED[column])
    printed = []
    for line in table.strip().splitlines():
        mode, *cells = line.split()
        score, speedup, thresholds = cells[3 * column : 3 * column + 3]
        pair = [None, None] if thresholds == "-" else thresholds.strip("()").split(",")
        rollback, fallback = (None if value is None else float(value) for value in pair)
        printed.append((mode, rollback, fallback, float(score), float(speedup)))
    # IWSLT's table is that of the first card.
    hardware = "RTX 2080 Ti" if (source, column) == ("reproduction", 0) else "Tesla T4"
    assert printed == [
        (row.mode, row.rollback, row.fallback, row.score, row.speedup)
        for row in task.published
        if (row.source, row.hardware, row.note) == (source, hardware, "")
    ]


def test_api_table():
    assert [
        (row.mode, row.metric, row.rollback, row.fallback, row.score, row.speedup)
        for row in get("api").published
    ] == [
        ("vanilla", "bleu", None, None, 20.00, 1.0),
        ("unaligned", "bleu", 5, 0.5, 19.33, 2.06),
        ("vanilla", "rougeL", None, None, 40.83, 1.0),
        ("unaligned", "rougeL", 5, 0.5, 40.20, 2.06),
    ]


def test_rates_and_lengths_of_the_result_files():
    assert [
        (row.fallback_rate, row.rollback_rate, row.mean_length)
        for row in get("cnndm").published
        if row.source == "reproduction" and row.mode in MODES
    ] == [
        (None, None, 74.8),
        (8.1, 1.67, 76.1),
        (1.4, 0.59, 76.9),
        (0.88, 4.54, 75.7),
        (0.16, 3.03, 77.2),
    ]


def test_iwslt_is_published_on_two_cards():
    rows = [
        (row.hardware, row.speedup)
        for row in get("iwslt2017").published
        if (row.source, row.mode, row.fallback) == ("reproduction", "aligned", 0.6)
    ]
    assert rows == [("RTX 2080 Ti", 1.73), ("Tesla T4", 1.54)]


def test_own_small_models_of_the_reproduction():
    rows = {
        (name, row.mode): (row.score, row.speedup, row.fallback_rate, row.rollback_rate)
        for name in PUBLISHED
        for row in get(name).published
        if "100k steps" in row.note
    }
    assert rows == {
        ("xsum", "aligned"): (34.28, 1.62, 10.90, 4.125),
        ("xsum", "unaligned"): (34.26, 1.35, 30.43, 3.008),
        ("wmt2014", "aligned"): (28.71, 1.60, 3.230, 2.327),
        ("wmt2014", "unaligned"): (27.81, 1.41, 16.36, 2.359),
    }


def test_small_models_alone():
    rows = {n: r.score for n in PUBLISHED for r in get(n).published if r.mode == "small"}
    assert rows == {"iwslt2017": 37.42, "wmt2014": 28.74, "xsum": 31.23, "cnndm": 40.43}


def test_small_model_of_a_mode():
    xsum = get("xsum")
    assert xsum.small_model("vanilla") is None
    assert xsum.small_model("unaligned") == "kssteven/T5-small-xsum"
    assert xsum.small_model("aligned") == "kssteven/T5-small-xsum-bild-aligned"
    assert xsum.default_thresholds("vanilla") is None


def test_api_has_no_aligned_model():
    with pytest.raises(BildError, match=r"iwslt2017 has no drafter; .* give it with --small"):
        get("iwslt2017").small_model("drafter")
    with pytest.raises(BildError, match="api has no aligned small model; run it with vanilla"):
        get("api").small_model("aligned")


def test_unknown_mode_is_named():
    with pytest.raises(BildError, match="vanilla, unaligned, aligned, drafter, got 'algned'"):
        get("xsum").default_thresholds("algned")


def test_demo_file_is_in_the_repository():
    demo = get("demo")
    assert demo.data is None
    assert demo.published == ()
    assert (REPOSITORY_ROOT / demo.file).is_file()


def test_the_published_rows_are_all_of_a_task_and_say_what_they_are():
    file = REPOSITORY_ROOT / "bild" / "tasks" / "published.json"
    tasks = json.loads(file.read_text(encoding="utf-8"))
    assert set(tasks) == set(PUBLISHED)
    for name, entry in tasks.items():
        assert set(entry) <= {"remarks", "rows"}
        assert len(published_rows(name)) == len(entry["rows"]) == len(set(published_rows(name)))
    assert published_rows("nobody's") == ()


@pytest.mark.parametrize("module", ["registry", "metrics", "data"])
def test_tasks_are_read_without_torch(module):
    code = f"import sys, bild.tasks.{module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_published_tasks_keep_the_rules_of_their_numbers():
    """Everything else is decoded by the default rules, with one default pair of thresholds."""
    assert {name for name in TASKS if get(name).variant == "authors"} == set(PUBLISHED)
    default = BiLDConfig()
    demo = get("demo")
    assert demo.variant == default.variant == "verified"
    for mode in ("unaligned", "aligned"):
        assert demo.default_thresholds(mode) == Thresholds(
            default.fallback_threshold, default.rollback_threshold
        )
