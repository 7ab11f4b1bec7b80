"""Draw quality against speedup, and score and speed over both thresholds.

    bild plot                     # the README's pictures, into docs/
    bild plot results/my results/other
    bild plot results/published

A folder of records of `run_eval.py` and `search_thresholds.py` makes one plot of tradeoff.svg. Its
searches and its small-models.json (`compare_small_models.py`) make thresholds-<folder>.svg, a row
a search or small model. results/published makes published.svg and a thresholds-<task>.svg for each
task that was swept. They go to out/plots, as PNG as well.
"""

from __future__ import annotations

from pathlib import Path

from bild.files import check_writable
from bild.parser import Parser

RESULTS = Path("results")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="of records (default: results/*)")
    parser.add_argument("--output-dir", type=Path, help="default: docs, or out/plots for folders")
    return parser


def main() -> None:
    a = make_parser().parse_args()

    from bild.pictures import save
    from bild.show.plots import AGREEMENT, SMALL_MODELS, draw_folders

    if a.folders:
        output = Path("out/plots") if a.output_dir is None else a.output_dir
        endings: tuple[str, ...] = (".svg", ".png")
        pictures = draw_folders(a.folders)
    else:
        output = Path("docs") if a.output_dir is None else a.output_dir
        endings = (".svg",)
        kinds = ("run*.json", SMALL_MODELS, AGREEMENT)
        shown = sorted({p.parent for kind in kinds for p in RESULTS.glob(f"*/{kind}")})
        pictures = draw_folders([*shown, RESULTS / "published"], sweeps_of=["iwslt2017"])
    check_writable(output)
    for picture in pictures:
        for ending in endings:
            path = output / f"{picture.name}{ending}"
            save(picture.figure, path, picture.title)
            print(path)
