"""Show which model wrote which token: the shipped pair, or any, on sentences of yours.

    bild trace "Heute Morgen lag überall Schnee."
    bild trace "Der Zug ist weg." "Wir warten." --html out/trace.html
    bild trace --fallback 0.6 --rollback 2 --variant verified < sentences.txt
    bild trace --task cnndm --mode aligned --device cuda < article.txt

Prints both outputs, every token with its writer and probability, what was rolled back or thrown
away, and a timeline of the forwards of both models against the large model alone, measured in the
same run. Without sentences, every line of the standard input is one. --html writes the same as one
page without external resources, --svg as a picture.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from bild.cli import add_pair_flags, pair_config, quiet_loading
from bild.errors import BildError
from bild.files import check_file, write_atomically
from bild.parser import Parser

NARROWEST = 30  # columns
LARGEST_INPUT = 4_000_000  # bytes


def read_sentences() -> list[str]:
    """The lines of the standard input that are not empty."""
    try:
        read = sys.stdin.buffer.read(LARGEST_INPUT + 1)
        if len(read) > LARGEST_INPUT:
            raise BildError(
                f"the standard input is longer than {LARGEST_INPUT:,} bytes; every line of it is "
                "shown, so give fewer"
            )
        text = read.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BildError(
            f"the standard input is not UTF-8 ({error.reason} at byte {error.start}); "
            "convert it first"
        ) from None
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("sentence", nargs="*", help="source texts (default: the lines of stdin)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write what is printed, drawn")
    parser.add_argument("--width", type=int, metavar="COLUMNS", help="(default: the terminal's)")
    add_pair_flags(parser)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    config, bild = pair_config(a)
    if a.width is not None and a.width < NARROWEST:
        raise BildError(f"--width must be at least {NARROWEST} columns, got {a.width}")
    for flag, path in (("--html", a.html), ("--svg", a.svg)):
        if path is not None:
            check_file(path, flag)
    sentences = a.sentence or read_sentences()
    if not sentences:
        raise BildError("there is no sentence; give one, or lines on the standard input")

    # Only now: these import torch and transformers, which takes seconds.
    from rich.console import Console

    from bild.show.html import page_html
    from bild.show.race import Racer
    from bild.show.terminal import RaceText

    quiet_loading()
    console = Console(width=a.width)
    drawing = Console(width=console.width, record=True, file=io.StringIO())
    racer = Racer.load(config)
    racer.warm_up(sentences[0])
    races = []
    for sentence in sentences:
        *_, race = racer.run(sentence, bild)
        races.append(race)
        for each in (console, drawing):
            each.print(RaceText(race))
            each.print()
    if a.html is not None:
        write_atomically(a.html, page_html(races))
        print(a.html)
    if a.svg is not None:
        svg = drawing.export_svg(title="scripts/show_trace.py")
        # Rich points to a web font; the picture is to need nothing but itself.
        write_atomically(a.svg, re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))
        print(a.svg)
