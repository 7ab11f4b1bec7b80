"""Write the README's result tables from the records in results/.

    python scripts/make_tables.py            # rewrites README.md between its markers
    python scripts/make_tables.py --check    # exit code 2 when README.md differs from the records

`<!-- results: demo -->` ... `<!-- end -->` holds the table of the records in results/demo/.
"""

from __future__ import annotations

import re
from pathlib import Path

from bild.cli import Parser, run
from bild.errors import BildError
from bild.files import write_atomically

MARKED = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    a = parser.parse_args()

    from bild.record import RunRecord
    from bild.tables import results_table

    def table(match: re.Match[str]) -> str:
        folder = a.results / match["name"]
        records = [RunRecord.load(p) for p in sorted(folder.glob("run*.json"))]
        if not records:
            raise BildError(f"{a.readme} wants the table of {folder}, which holds no run*.json")
        return f"{match[1]}\n{results_table(records)}\n\n{match[3]}"

    old = a.readme.read_text(encoding="utf-8")
    new = MARKED.sub(table, old)
    if not a.check:
        write_atomically(a.readme, new)
    elif new != old:
        raise BildError(f"{a.readme} is not what the records say; run scripts/make_tables.py")


if __name__ == "__main__":
    run(main)
