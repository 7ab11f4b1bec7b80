"""Write the result tables of README.md and docs/ from the records in results/.

    python scripts/make_tables.py            # rewrites the pages between their markers
    python scripts/make_tables.py --check    # exit code 2 when a page differs from the records

`<!-- results: demo -->` ... `<!-- end -->` holds the table of the runs in results/demo/,
`<!-- front: demo -->` what `make demo` prints, of results/demo/front.json,
`<!-- speed: demo -->` that of the benchmark results/speed/demo.json, `<!-- two-factors -->` that of
all benchmarks: what the engine gives, and what BiLD adds,
`<!-- rules: demo -->` that of results/demo/rules.json, once it is there,
`<!-- faults: faults -->` that of results/faults.json, once it is there,
`<!-- agreement: tatoeba -->` that of results/tatoeba/agreement.json, and
`<!-- small-models: tatoeba -->` those of results/tatoeba/small-models.json.
"""

from __future__ import annotations

from pathlib import Path

from bild.cli import run
from bild.parser import Parser
from bild.show.pages import check_page, write_page


def main() -> None:
    parser = Parser(__doc__)
    pages = (Path("README.md"), *sorted(Path("docs").glob("*.md")))
    add = parser.add_argument
    add("--pages", "--readme", nargs="+", type=Path, default=pages, metavar="FILE", help="to write")
    add("--results", type=Path, default=Path("results"), metavar="FOLDER", help="of the records")
    add("--check", action="store_true", help="write nothing, only compare")
    a = parser.parse_args()
    for page in a.pages:
        if a.check:
            check_page(page, a.results)
        else:
            write_page(page, a.results)


if __name__ == "__main__":
    run(main)
