"""Make every record in results/ again, from one clean commit on one machine.

    python scripts/make_results.py --list                 # what there is, and what it takes
    python scripts/make_results.py                        # hours; goes on where it was stopped
    python scripts/make_results.py --only 'speed/*'       # a part

results/records.toml has the records in the order they are made, each with its command. A record
that this commit has made already is left as it is; one that was stopped goes on. {data} in it
stands for $BILD_DATA_ROOT; records whose data are not there are named and left out. Nothing else
should run on the machine meanwhile. Then scripts/make_tables.py and scripts/plot_tradeoff.py put
them into the pages: not before, for a page that changed makes the tree differ from the commit.
"""

from __future__ import annotations

import os
from pathlib import Path

from bild.cli import run
from bild.evaluation.environment import ROOT
from bild.evaluation.remake import remake
from bild.parser import Parser


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--only", nargs="+", default=["*"], metavar="GLOB", help="records to make (default: all)")
    add("--list", action="store_true", help="print the records and make none")
    add("--results", type=Path, default=ROOT / "results", help="folder (default: results)")
    a = parser.parse_args()
    remake(a.results, a.only, os.environ.get("BILD_DATA_ROOT"), only_list=a.list)


if __name__ == "__main__":
    run(main, resumes=True)
