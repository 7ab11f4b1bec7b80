"""Pages of Markdown whose tables come from records, between markers that name them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bild.benchmark.record import BenchmarkRecord
from bild.errors import BildError
from bild.evaluation.record import Record, RunRecord
from bild.files import write_atomically
from bild.show.speed_tables import speed_summary, two_factors
from bild.show.tables import agreement_table, results_table, small_models_table
from bild.training.record import AgreementRecord
from bild.tuning.record import SmallModelsRecord

MARKED = re.compile(r"(<!-- (?P<kind>[\w-]+): (?P<name>[\w+-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


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


R = TypeVar("R", bound=Record)


def _load(kind: type[R], path: Path) -> R:
    """A record that says which code made it.

    Raises:
        BildError: as `Record.load`; or it was made by code that no commit holds.
    """
    record = kind.load(path)
    if record.env.commit is None or record.env.dirty:
        raise BildError(f"{path} was not made from a clean commit; make it again")
    return record


def _runs(results: Path, name: str) -> str:
    records = [_load(RunRecord, path) for path in sorted((results / name).glob("run*.json"))]
    if not records:
        raise BildError(f"a page wants the table of {results / name}: there is no run*.json")
    return results_table(records)


def _benchmark(results: Path, name: str) -> BenchmarkRecord:
    return _load(BenchmarkRecord, results / "speed" / f"{name}.json")


TABLES: dict[str, Callable[[Path, str], str]] = {
    "results": _runs,
    "speed": lambda results, name: speed_summary(_benchmark(results, name)),
    "two-factors": lambda results, name: two_factors(
        [_benchmark(results, one) for one in name.split("+")]
    ),
    "agreement": lambda results, name: agreement_table(
        _load(AgreementRecord, results / name / "agreement.json")
    ),
    "small-models": lambda results, name: small_models_table(
        _load(SmallModelsRecord, results / name / "small-models.json")
    ),
}
