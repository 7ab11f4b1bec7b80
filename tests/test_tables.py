"""Tables: what they show, and that the README shows the records."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bild import BildError
from bild.record import RunRecord
from bild.tables import published_table, results_table, run_table

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def record():
    return RunRecord.load(min((ROOT / "results" / "demo").glob("run*.json")))


def test_run_table_shows_every_arm_with_its_interval(record):
    text = run_table(record)
    for arm, name in (("vanilla", "large alone"), ("small", "small alone"), ("bild", "BiLD")):
        quality = record.quality[arm]
        assert name in text
        assert f"{quality['value']:.2f} [{quality['low']:.2f}, {quality['high']:.2f}]" in text
    assert f"{record.decoding['bild']['fallback_rate']:.1f} fallbacks" in text


def test_results_table_has_one_row_a_run_and_refuses_unlike_ones(record):
    table = results_table([record, record])
    assert table.count("BiLD authors") == 2
    assert table.count("large alone") == 1
    other = replace(record, data={**record.data, "sha256": "0"})
    with pytest.raises(BildError, match="data differ"):
        results_table([record, other])


def test_published_rows_stand_with_their_thresholds():
    text = published_table("cnndm", "aligned")
    assert "41.52" in text
    assert "1.85x" in text
    assert published_table("demo", "unaligned") == ""


def test_readme_shows_what_the_records_say(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "scripts/make_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check"])
    script.main()


def test_stale_readme_is_noticed(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "scripts/make_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results: demo -->\n| old |\n<!-- end -->\n")
    arguments = ["--readme", str(readme), "--results", str(ROOT / "results")]
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check", *arguments])
    with pytest.raises(BildError, match="is not what the records say"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["make_tables.py", *arguments])
    script.main()
    assert "large alone" in readme.read_text()
