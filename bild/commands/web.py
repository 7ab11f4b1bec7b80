"""The live page: type a sentence and watch the pair race against the large model alone.

    make web                                  # sets up .venv with Gradio and calls this
    bild web --port 8000 --open
    bild web --large my/large --small my/small --fallback 0.5
    bild web --task xsum --mode aligned --device cuda

Both outputs stream side by side; below them stand who wrote which token and the timeline of the
forwards. The page listens on 127.0.0.1 alone and loads nothing from elsewhere. It needs Gradio
(requirements-web.txt).
"""

from __future__ import annotations

from bild.cli import add_pair_flags, pair_config, quiet_loading
from bild.parser import Parser
from bild.show.serving import check_port, serve
from bild.tasks.registry import get

# Of the first the small model drafts most, is unsure once, and is corrected once.
EXAMPLES = (
    "Je länger ich hier wohne, desto besser gefällt mir das Viertel.",
    "Vergessen Sie bitte nicht, am Ende das Licht im Flur auszumachen.",
    "Tom hat vergessen, die Tür abzuschließen, bevor er ins Bett ging.",
)
SHIPPED = "This pair translates from German to English and knows everyday sentences."


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--port", type=int, help="1 to 65535 (default: the first free one from 7860 on)"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    add_pair_flags(parser)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    config, bild = pair_config(a)
    check_port(a.port)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.show.html import race_css
    from bild.show.race import Racer
    from bild.show.web import CSS, build_page

    quiet_loading()
    racer = Racer.load(config)
    racer.warm_up(EXAMPLES[0])
    shipped = a.task == "demo" and a.large is None
    about = SHIPPED if shipped else f"Task: {get(a.task).description}."
    page = build_page(racer, bild, EXAMPLES if a.task == "demo" else (), about)
    serve(page, a.port, CSS + race_css(), a.open)
