"""Write the README's result tables from the records in results/.

    python scripts/make_tables.py            # rewrites README.md between its markers
    python scripts/make_tables.py --check    # exit code 2 when README.md differs from the records

`<!-- results: demo -->` ... `<!-- end -->` holds the table of the runs in results/demo/,
`<!-- speed: demo -->` that of the benchmark results/speed/demo.json,
`<!-- agreement: tatoeba -->` that of results/tatoeba/agreement.json, and
`<!-- small-models: tatoeba -->` those of results/tatoeba/small-models.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bild.cli import Parser, run
from bild.errors import BildError
from bild.files import write_atomically

MARKED = re.compile(
    r"(<!-- (?P<kind>results|speed|agreement|small-models): (?P<name>[\w-]+) -->\n)"
    r".*?(<!-- end -->)",
    re.DOTALL,
)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="the page")
    parser.add_argument("--results", type=Path, default=Path("results"), help="records")
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    a = parser.parse_args()

    from bild.evaluation.record import RunRecord, SmallModelsRecord
    from bild.show.speed_tables import speed_summary
    from bild.show.tables import agreement_table, results_table, small_models_table

    def there(path: Path) -> Path:
        if not path.is_file():
            raise BildError(f"{a.readme} wants the table of {path}, which is not there")
        return path

    def read(path: Path) -> dict[str, Any]:
        return json.loads(there(path).read_text(encoding="utf-8"))

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if match["kind"] == "speed":
            text = speed_summary(read(a.results / "speed" / f"{name}.json"))
        elif match["kind"] == "agreement":
            text = agreement_table(read(a.results / name / "agreement.json"))
        elif match["kind"] == "small-models":
            path = there(a.results / name / "small-models.json")
            text = small_models_table(SmallModelsRecord.load(path))
        else:
            records = [RunRecord.load(p) for p in sorted((a.results / name).glob("run*.json"))]
            if not records:
                raise BildError(f"{a.readme} wants the table of {a.results / name}: no run*.json")
            text = results_table(records)
        return f"{match[1]}\n{text}\n\n{match[4]}"

    old = a.readme.read_text(encoding="utf-8")
    new = MARKED.sub(table, old)
    if not a.check:
        write_atomically(a.readme, new)
    elif new != old:
        raise BildError(f"{a.readme} is not what the records say; run scripts/make_tables.py")


if __name__ == "__main__":
    run(main)
