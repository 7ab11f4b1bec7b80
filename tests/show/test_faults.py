"""The table of injected faults: what it counts, and that a page gets it from the record."""

from __future__ import annotations

import json

import pytest

from bild.errors import BildError
from bild.show.faults import faults_table
from bild.show.pages import rendered

SCRIPTS = {
    "cook": {
        "changes": 9, "seconds": 2.0, "faults": {"before": 3, "half": 2, "full": 1}, "trials": 4,
        "complaints": [], "recovery": {"min": 0.5, "median": 1.0, "max": 2.25},
    },
    "wash": {
        "changes": 2, "seconds": 1.0, "faults": {"before": 1, "half": 0, "full": 4}, "trials": 5,
        "complaints": ["a plate is missing"], "recovery": {"min": 1.0, "median": 1.0, "max": 1.0},
    },
}  # fmt: skip


def test_the_table_counts_by_script_and_in_all():
    rows = faults_table(SCRIPTS).splitlines()
    assert rows[2:] == [
        "| cook | 9 | 3 | 2 | 1 | 0 | 2.0 | 0.5, 1.0, 2.2 |",
        "| wash | 2 | 1 | 0 | 4 | 1 | 1.0 | 1.0, 1.0, 1.0 |",
        "| all 11 |  | 4 | 2 | 5 | 1 |  |  |",
    ]


def test_a_page_shows_the_record_once_it_is_there(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- faults: faults -->\n<!-- end -->\n")
    assert rendered(page, tmp_path) == page.read_text()
    (tmp_path / "faults.json").write_text(json.dumps({"scripts": SCRIPTS}))
    assert faults_table(SCRIPTS) in rendered(page, tmp_path)
    (tmp_path / "faults.json").write_text("{")
    with pytest.raises(BildError, match=r"faults\.json, line 1 is not JSON"):
        rendered(page, tmp_path)
