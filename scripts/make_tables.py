"""Write the README's result tables from the records in results/.

    python scripts/make_tables.py            # rewrites README.md between its markers
    python scripts/make_tables.py --check    # exit code 2 when README.md differs from the records

`<!-- results: demo -->` ... `<!-- end -->` holds the table of the runs in results/demo/,
`<!-- speed: demo -->` that of the benchmark results/speed/demo.json, and
`<!-- agreement: tatoeba -->` that of results/tatoeba/agreement.json.
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
    r"(<!-- (?P<kind>results|speed|agreement): (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL
)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    a = parser.parse_args()

    from bild.record import RunRecord
    from bild.speed_tables import speed_summary
    from bild.tables import agreement_table, results_table

    def read(path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise BildError(f"{a.readme} wants the table of {path}, which is not there")
        return json.loads(path.read_text(encoding="utf-8"))

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if match["kind"] == "speed":
            text = speed_summary(read(a.results / "speed" / f"{name}.json"))
        elif match["kind"] == "agreement":
            text = agreement_table(read(a.results / name / "agreement.json"))
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
