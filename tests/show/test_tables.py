"""Tables: what they show, and that the README shows the records."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bild import BildError
from bild.evaluation.record import RunRecord
from bild.show.tables import published_table, results_table, run_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def record():
    return RunRecord.load(ROOT / "results/demo/run-unaligned-0.2-5.json")


def test_run_table_shows_every_arm_with_its_interval(record):
    text = run_table(record)
    for arm, name in (("vanilla", "large alone"), ("small", "small alone"), ("bild", "BiLD")):
        quality = record.quality[arm]
        assert name in text
        assert f"{quality['value']:.2f} [{quality['low']:.2f}, {quality['high']:.2f}]" in text
    assert f"{record.decoding['bild']['fallback_rate']:.1f} fallbacks" in text


def test_results_table_has_one_row_a_run_and_refuses_unlike_ones(record):
    table = results_table([record, record])
    assert table.count("BiLD unaligned (") == 2
    assert table.count("large alone") == 1
    assert table.count("small alone") == 1
    other = replace(record, data={**record.data, "sha256": "0"})
    with pytest.raises(BildError, match="data differ"):
        results_table([record, other])


def test_results_table_marks_the_best_and_names_what_was_run(record):
    faster = replace(
        record,
        config={**record.config, "mode": "aligned"},
        speed={**record.speed, "bild": {**record.speed["bild"], "speedup": {
            "value": 9.0, "low": 8.0, "high": 10.0}}},
        quality={**record.quality, "bild": {**record.quality["bild"], "value": 1.0}},
    )  # fmt: skip
    table = results_table([record, faster]).splitlines()
    unaligned, aligned = (line for line in table if line.startswith("| BiLD"))
    assert "unaligned (0.2, 5)" in unaligned
    assert f"**{record.quality['bild']['value']:.2f} [" in unaligned
    assert "**9.00x [8.00, 10.00]**" in aligned
    assert "**1.00" not in aligned
    assert f"engine {record.env['engine']}" in results_table([record])


def test_published_rows_stand_with_their_thresholds():
    text = published_table("cnndm", "aligned")
    assert "41.52" in text
    assert "1.85x" in text
    assert published_table("demo", "unaligned") == ""


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "scripts/make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_shows_what_the_records_say(script, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check"])
    script.main()


def test_stale_readme_is_noticed(script, monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results: demo -->\n| old |\n<!-- end -->\n")
    arguments = ["--readme", str(readme), "--results", str(ROOT / "results")]
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check", *arguments])
    with pytest.raises(BildError, match="is not what the records say"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["make_tables.py", *arguments])
    script.main()
    assert "large alone" in readme.read_text()
