"""Pages of Markdown whose tables come from records, between markers that name them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bild.errors import BildError
from bild.evaluation.record import RunRecord, read_record
from bild.files import write_atomically
from bild.show.speed_tables import speed_summary
from bild.show.tables import agreement_table, results_table, small_models_table
from bild.tuning.record import SmallModelsRecord

MARKED = re.compile(r"(<!-- (?P<kind>[\w-]+): (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_page(page: Path, results: Path) -> None:
    """Write a page's tables as the records have them.

    Raises:
        BildError: as `rendered`.
    """
    old = page.read_text(encoding="utf-8")
    new = rendered(page, results)
    if new != old:
        write_atomically(page, new)


def check_page(page: Path, results: Path) -> None:
    """Refuse a page whose tables are not what the records say.

    Raises:
        BildError: it is not; or as `rendered`.
    """
    if rendered(page, results) != page.read_text(encoding="utf-8"):
        raise BildError(f"{page} is not what the records say; run scripts/make_tables.py")


def rendered(page: Path, results: Path) -> str:
    """A page with the tables that its markers name.

    Args:
        page: a file of Markdown.
        results: the folder of records.

    Raises:
        BildError: a marker of no known kind, a record that is not there, or records that must not
            share a table.
    """

    def table(match: re.Match[str]) -> str:
        kind = match["kind"]
        if kind not in TABLES:
            raise BildError(f"{page} wants a table of {kind!r}; known are {', '.join(TABLES)}")
        text = TABLES[kind](results, match["name"])
        return f"{match[1]}\n{text}\n\n{match[4]}"

    return MARKED.sub(table, page.read_text(encoding="utf-8"))


def _runs(results: Path, name: str) -> str:
    records = [RunRecord.load(path) for path in sorted((results / name).glob("run*.json"))]
    if not records:
        raise BildError(f"a page wants the table of {results / name}: there is no run*.json")
    return results_table(records)


TABLES: dict[str, Callable[[Path, str], str]] = {
    "results": _runs,
    "speed": lambda results, name: speed_summary(read_record(results / "speed" / f"{name}.json")),
    "agreement": lambda results, name: agreement_table(
        read_record(results / name / "agreement.json")
    ),
    "small-models": lambda results, name: small_models_table(
        SmallModelsRecord.load(results / name / "small-models.json")
    ),
}
