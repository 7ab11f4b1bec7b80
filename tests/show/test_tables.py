"""Tables: what they show, and that the pages show the records."""

import subprocess
import sys
from dataclasses import replace

import pytest
from commands import ROOT, script
from records import around, environment, run_record

from bild import BildError
from bild.benchmark.config import BenchmarkConfig
from bild.benchmark.record import BenchmarkArm, BenchmarkRecord, Ratio, Spread
from bild.evaluation.arms import ArmId
from bild.show.tables import paper_table, published_table, results_table, run_table
from bild.tasks.registry import get


def test_run_table_shows_every_arm_with_its_interval():
    record = run_record()
    text = run_table(record)
    for kind, name in (("vanilla", "large alone"), ("small", "small alone"), ("bild", "BiLD")):
        quality = record.arm(kind).quality["bleu"]
        assert name in text
        assert f"{quality.value:.2f} [{quality.low:.2f}, {quality.high:.2f}]" in text
    assert "1.50x [1.40, 1.60]" in text
    assert "10.0 fallbacks, 2.5 rollbacks, 30.0 large forwards" in text
    assert "intervals cover examples, within one run" in text


def test_results_table_has_one_row_a_run_and_refuses_unlike_ones():
    record = run_record()
    table = results_table([record, record])
    assert table.count("BiLD unaligned (") == 2
    assert table.count("large alone") == 1
    assert table.count("small alone") == 1
    other = replace(record, data=replace(record.data, sha256="0"))
    with pytest.raises(BildError, match="data differ"):
        results_table([record, other])
    with pytest.raises(BildError, match="threads differ, 2 / 1"):
        results_table([record, replace(record, env=environment(threads=1))])


def test_results_table_marks_the_best_and_names_what_was_run():
    record = run_record(fallback=0.2, rollback=5)
    faster = run_record("aligned", score=1.0, speedup=9.0)
    table = results_table([record, faster]).splitlines()
    unaligned, aligned = (line for line in table if line.startswith("| BiLD"))
    assert "unaligned (0.2, 5)" in unaligned
    assert "**29.00 [" in unaligned
    assert "**9.00x [8.90, 9.10]**" in aligned
    assert "**1.00" not in aligned
    footnote = results_table([record])
    assert "engine fast, float32, compiled, 2 thread(s) of a processor x 2" in footnote
    assert "intervals: examples, within one run" in footnote


def test_published_rows_stand_with_their_thresholds():
    text = published_table("cnndm", "aligned")
    assert "41.52" in text
    assert "1.85x" in text
    assert published_table("demo", "unaligned") == ""


def test_tables_and_records_are_read_without_torch():
    code = (
        "import sys, bild.show.tables, bild.show.speed_tables, bild.evaluation.record\n"
        f"sys.argv = ['make_tables.py', '--check']; sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "import make_tables; make_tables.main()\n"
        "print(*({'torch', 'transformers', 'datasets', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# ------------------------------------------------------------------------------ in pages


def make_tables(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_tables.py", *map(str, arguments)])
    script("make_tables").main()


def test_pages_show_what_the_records_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    make_tables(monkeypatch, "--check")


def test_a_stale_page_is_noticed(monkeypatch, tmp_path):
    page, results = tmp_path / "README.md", tmp_path / "results"
    (results / "mine").mkdir(parents=True)
    run_record().save(results / "mine" / "run.json")
    page.write_text("before\n<!-- results: mine -->\n| old |\n<!-- end -->\nafter\n")
    arguments = ("--pages", page, "--results", results)
    with pytest.raises(BildError, match="is not what the records say"):
        make_tables(monkeypatch, "--check", *arguments)
    make_tables(monkeypatch, *arguments)
    assert "large alone" in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    make_tables(monkeypatch, "--check", *arguments)


@pytest.mark.parametrize("change", [{"dirty": True}, {"commit": None, "dirty": None}])
def test_a_record_that_no_commit_made_is_not_shown(monkeypatch, tmp_path, change):
    page, results = tmp_path / "README.md", tmp_path / "results"
    (results / "mine").mkdir(parents=True)
    replace(run_record(), env=environment(**change)).save(results / "mine" / "run.json")
    page.write_text("<!-- results: mine -->\n<!-- end -->\n")
    with pytest.raises(BildError, match=r"run\.json was not made from a clean commit"):
        make_tables(monkeypatch, "--pages", page, "--results", results)


def test_rows_of_unlike_runs_never_share_a_table(monkeypatch, tmp_path):
    page, results = tmp_path / "README.md", tmp_path / "results"
    (results / "mine").mkdir(parents=True)
    record = run_record()
    record.save(results / "mine" / "run-1.json")
    replace(record, env=environment(commit="e" * 40)).save(results / "mine" / "run-2.json")
    page.write_text("<!-- results: mine -->\n<!-- end -->\n")
    with pytest.raises(BildError, match="commits differ"):
        make_tables(monkeypatch, "--pages", page, "--results", results)


# ------------------------------------------------------------------------------ engine times method


def benchmark(**env):
    """A benchmark of the large model alone (4x) and BiLD (6x) on one engine."""

    def arm(id, seconds, ratio, over_alone=None):
        to = ArmId("greedy")
        return BenchmarkArm(
            id=id, title=id.kind, built="fast, int8, compiled", seconds=Spread(seconds, 0, 1),
            encoder_share=0.1, outside_share=0.1, tokens_per_second=10.0, ready_seconds=1.0,
            same_output=1.0, models={}, ratio=Ratio(to, around(ratio, 0.1), None), ratio_same=None,
            ratio_alone=over_alone and Ratio(alone, around(over_alone, 0.1), None), stats=None,
            rates=None, quality=None, as_planned=None, costs=None,
        )  # fmt: skip

    alone, pair = ArmId("vanilla", "fast", "int8", True), ArmId("bild", "fast", "int8", True)
    greedy = ArmId("greedy")
    run = run_record()
    return BenchmarkRecord(
        models=run.models,
        data=run.data,
        env=environment(**env),
        config=BenchmarkConfig((greedy, alone, pair), run.config.bild, 50),
        timing=run.timing,
        metric="",
        source_tokens=9.0,
        memory=Spread(1e9, 1e9, 1e9),
        arms=(arm(greedy, 1.0, 1.0), arm(alone, 0.25, 4.0), arm(pair, 1 / 6, 6.0, 1.5)),
        growth=(),
        failed=(),
    )


def test_two_factors_stand_side_by_side_and_nothing_where_there_is_no_record(monkeypatch, tmp_path):
    page, speed = tmp_path / "README.md", tmp_path / "results" / "speed"
    empty = "<!-- two-factors -->\n<!-- end -->\n"
    page.write_text(empty)
    arguments = ("--pages", page, "--results", tmp_path / "results")
    make_tables(monkeypatch, *arguments)
    assert page.read_text() == empty
    speed.mkdir(parents=True)
    benchmark().save(speed / "demo.json")
    make_tables(monkeypatch, *arguments)
    (row,) = (line for line in page.read_text().splitlines() if "fast, int8" in line)
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells[1:3] == ["4.00x [3.90, 4.10]", "BiLD"]
    assert cells[3:] == ["6.00x [5.90, 6.10]", "**1.50x [1.40, 1.60]**"]
    assert "2 thread(s) of a processor x 2, torch 2.13.0" in page.read_text()
    on_gpu = benchmark(threads=1)
    gpu = replace(on_gpu.env, device="cuda", gpu="a card")
    replace(on_gpu, env=gpu).save(speed / "gpu.json")  # it has a page of its own
    make_tables(monkeypatch, *arguments)
    page.write_text(page.read_text() + "<!-- speed: gpu -->\n<!-- end -->\n")
    make_tables(monkeypatch, *arguments)
    assert "a card" in page.read_text().split("<!-- speed: gpu -->")[1]
    assert "a card" not in page.read_text().split("<!-- speed: gpu -->")[0]
    benchmark(threads=1).save(speed / "other.json")
    with pytest.raises(BildError, match="cannot share a table: threads 1, not 2"):
        make_tables(monkeypatch, *arguments)


@pytest.mark.parametrize("marker", ["two-factors: demo", "results", "unknown: demo"])
def test_a_marker_that_names_no_table_is_refused(monkeypatch, tmp_path, marker):
    page = tmp_path / "README.md"
    page.write_text(f"<!-- {marker} -->\n<!-- end -->\n")
    with pytest.raises(BildError, match=marker.split(":")[0]):
        make_tables(monkeypatch, "--pages", page, "--results", tmp_path)


def test_the_papers_rows_of_a_task_stand_by_mode():
    lines = paper_table("iwslt2017").splitlines()
    assert lines[0].split()[1] == "paper"
    modes = [line.split()[1] for line in lines[2:]]
    assert modes == [r.mode for r in get("iwslt2017").published if r.source == "paper"]
    assert set(modes) == {"unaligned", "aligned"}
    assert all("reproduction" not in line for line in lines)
