"""Running a service until it is told to end (uvicorn)."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

from bild.errors import BildError
from bild.serve.config import ServeConfig
from bild.stopping import unhurried

CONNECTIONS = 1000  # at a time; more are answered with 503


def make_server(app: FastAPI, config: ServeConfig) -> uvicorn.Server:
    """A server of an application, not yet running."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=config.grace,
        )
    )


def listen(config: ServeConfig) -> socket.socket:
    """A socket that listens.

    Raises:
        BildError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((config.host, config.port))
    except OSError as error:
        found.close()
        raise BildError(
            f"cannot listen on {config.host}, port {config.port} ({error.strerror}); choose others "
            "by --host and --port"
        ) from None
    found.listen(2048)
    return found


def serve(app: FastAPI, config: ServeConfig, found: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; what has begun is finished first.

    Args:
        app: from `bild.serve.app.make_app`.
        config: of the service.
        found: from `listen`.
    """
    host, port = found.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}/ (Ctrl+C ends it)", flush=True)
    with unhurried():
        make_server(app, config).run(sockets=[found])
