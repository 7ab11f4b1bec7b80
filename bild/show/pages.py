"""Pages of Markdown whose tables come from records, between markers that name them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bild.benchmark.record import BenchmarkRecord
from bild.errors import BildError
from bild.evaluation.folder import Identity
from bild.evaluation.record import Record, RunRecord
from bild.files import write_atomically
from bild.show.faults import faults_of
from bild.show.front import FrontRecord, front_text
from bild.show.rules import rules_table
from bild.show.speed_tables import speed_summary, two_factors
from bild.show.tables import agreement_table, paper_table, results_table, small_models_table
from bild.training.record import AgreementRecord
from bild.tuning.record import RulesRecord, SmallModelsRecord

MARKED = re.compile(
    r"(<!-- (?P<kind>[\w-]+)(: (?P<name>[\w-]+))? -->\n)(.*?)(<!-- end -->)", re.DOTALL
)


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
        if (match["name"] is None) != (kind == TWO_FACTORS):
            raise BildError(
                f"{page}: a table of {kind!r} {'has no' if match['name'] else 'needs a'} name"
            )
        text = TABLES[kind](results, match["name"] or "")
        return f"{match[1]}\n{text}\n\n{match[6]}" if text else f"{match[1]}{match[6]}"

    return MARKED.sub(table, page.read_text(encoding="utf-8"))


R = TypeVar("R", bound=Record)

TWO_FACTORS = "two-factors"  # the marker without a name: it takes all benchmarks


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


def _two_factors(results: Path, _: str) -> str:
    """Of all benchmarks on a CPU where the large model also ran alone; empty where there is none.

    Those of a GPU stand on a page of their own: a table is of one machine.
    """
    records = [
        _benchmark(results, path.stem) for path in sorted((results / "speed").glob("*.json"))
    ]
    alone = (r for r in records if any(arm.ratio_alone is not None for arm in r.arms))
    records = [r for r in alone if r.env.gpu is None]
    for other in records[1:]:
        different = Identity({}, records[0].env.place()).difference(other.env.place())
        if different:
            raise BildError(f"the benchmarks in {results} cannot share a table: {different}")
    return two_factors(records) if records else ""


def _front(results: Path, name: str) -> str:
    """What `make demo` prints; empty where its record has not been made."""
    path = results / name / "front.json"
    return f"```text\n{front_text(_load(FrontRecord, path))}\n```" if path.exists() else ""


def _throughput(results: Path, name: str) -> str:
    """A benchmark of batch sizes; empty where its record has not been made."""
    there = (results / "speed" / f"{name}.json").exists()
    return speed_summary(_benchmark(results, name)) if there else ""


def _rules(results: Path, name: str) -> str:
    """Rules side by side; empty where their record has not been made."""
    path = results / name / "rules.json"
    return rules_table(_load(RulesRecord, path)) if path.exists() else ""


def _faults(results: Path, name: str) -> str:
    """Injected faults by script; empty where they have not been counted."""
    path = results / f"{name}.json"
    return faults_of(path) if path.exists() else ""


TABLES: dict[str, Callable[[Path, str], str]] = {
    "front": _front,
    "results": _runs,
    "speed": lambda results, name: speed_summary(_benchmark(results, name)),
    "throughput": _throughput,
    TWO_FACTORS: _two_factors,
    "rules": _rules,
    "faults": _faults,
    "published": lambda _, task: paper_table(task),
    "agreement": lambda results, name: agreement_table(
        _load(AgreementRecord, results / name / "agreement.json")
    ),
    "small-models": lambda results, name: small_models_table(
        _load(SmallModelsRecord, results / name / "small-models.json")
    ),
}
