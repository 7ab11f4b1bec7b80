"""The pair as an HTTP service: texts in, texts out, with who wrote each token.

    make serve                                # sets up .venv and calls this
    bild serve --port 8080 --precision int8 --workers 2
    bild serve --large my/large --small my/small --prefix "translate: "
    bild serve --host 0.0.0.0 --allow-host translate.example

POST /generate takes {"text": "..."} or several texts, POST /stream sends tokens as they are settled
(server-sent events); GET /health, /metrics (Prometheus), /docs and /openapi.json say more, and so
does docs/serve.md. It listens on this machine alone unless told otherwise, and has no passwords:
put a proxy with TLS and access rules before it where others may ask. SIGTERM lets it finish what it
has begun. It needs FastAPI, uvicorn and prometheus-client (requirements-serve.txt).
"""

from __future__ import annotations

from bild.cli import add_pair_flags, pair_config, quiet_loading
from bild.flags import add_fields, read_fields
from bild.parser import Parser
from bild.serve.config import RANGES, ServeConfig

OPTIONS = ("host", *RANGES)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add_fields(parser, ServeConfig, *OPTIONS)
    add = parser.add_argument
    add("--allow-host", nargs="+", default=(), metavar="NAME", help="names it is called by")
    add_pair_flags(parser)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    settings = ServeConfig(allow_host=tuple(a.allow_host), **read_fields(a, *OPTIONS))
    config, bild = pair_config(a)

    # Only now: these import torch and transformers, which takes seconds.
    from bild.serve.app import make_app
    from bild.serve.run import listen, serve
    from bild.serve.worker import Job, Translator
    from bild.show.race import Racer

    found = listen(settings)  # before the models: a port that is taken is said at once
    quiet_loading()
    racer = Racer.load(config)
    translator = Translator(
        racer.pair,
        racer.tokenizer,
        racer.prefix,
        racer.max_source_tokens,
        racer.max_new_tokens,
    )
    translator.decode(Job("a", bild, 8))  # compiled, and the first forwards made
    serve(make_app(translator, settings, bild), settings, found)
