"""Every row of the fault table names a test that is there."""

from __future__ import annotations

import re

from commands import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_row_names_a_test_that_is_there():
    table = PAGE.partition("<!-- faults")[0]  # behind it are figures
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 85
    for row in rows:
        place = re.search(r"`(tests/\S+)::(\w+)` \|$", row)
        assert place or row.endswith("the same test |"), row
        if place:
            source = (ROOT / place[1]).read_text(encoding="utf-8")
            assert f"def {place[2]}(" in source, row
