"""The live page: type a sentence and watch the pair race against the large model alone.

    make web                                  # sets up .venv with Gradio and calls this
    python scripts/web.py --port 8000 --open
    python scripts/web.py --large my/large --small my/small --fallback 0.5
    python scripts/web.py --task xsum --mode aligned --device cuda

Both outputs stream side by side; below them stand who wrote which token and the timeline of the
forwards. The page listens on 127.0.0.1 alone and loads nothing from elsewhere. It needs Gradio
(requirements-web.txt).
"""

from __future__ import annotations

from bild.cli import Parser, add_pair_flags, pair_config, quiet_loading, run

EXAMPLES = (
    "Heute Morgen lag überall Schnee.",
    "Wir würden gern einen Tisch am Fenster nehmen, falls noch einer frei ist.",
    "Mein Wecker blieb heute früh stumm. Der Bus war natürlich schon weg.",
)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    add_pair_flags(parser)
    a = parser.parse_args()
    config, bild = pair_config(a)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.show.race import Racer
    from bild.show.web import build_page, serve

    quiet_loading()
    racer = Racer.load(config)
    racer.warm_up(EXAMPLES[0])
    serve(build_page(racer, bild, EXAMPLES if a.task == "demo" else ()), a.port, a.open)


if __name__ == "__main__":
    run(main)
