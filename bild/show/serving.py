"""Serving the live page to this machine alone: what is answered is a list, all else is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bild.errors import BildError

if TYPE_CHECKING:
    import gradio

PORTS = range(1, 65_536)
LOCAL = {"127.0.0.1", "localhost", "::1"}
LARGEST_BODY = 100_000  # bytes; the longest text of the page is far below
# What the page asks for. Gradio answers more: uploads, files, proxies, recordings, logs.
PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
FOLDERS = ("/assets/", "/static/", "/svelte/", "/pwa_icon")
API = "/gradio_api/"
CALLS = {
    "app_id", "call", "cancel", "heartbeat", "info", "queue", "reset", "run", "startup-events",
    "theme.css",
}  # fmt: skip


def check_port(port: int | None) -> None:
    """Refuse a number that is no port; None is the first free one.

    Raises:
        BildError: the number is named.
    """
    if port is not None and port not in PORTS:
        raise BildError(f"--port must be {PORTS[0]} to {PORTS[-1]}, got {port}")


def refusal(method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
    """Why a request is not answered: a status and a sentence; None if it is.

    A page of another origin, or a name that somebody has pointed to this machine, has no business
    here, and neither has a file.

    Args:
        method, path: of the request.
        headers: by their lower-case names.
    """
    if _host(headers.get("host", "")) not in LOCAL:
        return 403, "this page is for the machine that it runs on"
    if "origin" in headers and _host(headers["origin"].partition("//")[2]) not in LOCAL:
        return 403, "this page is not for other pages"
    if not (path in PAGES or path.startswith(FOLDERS) or _is_call(path)):
        return 404, "there is nothing here"
    if method not in ("GET", "HEAD"):
        length = headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return 413, f"a request may have {LARGEST_BODY} bytes, and says how many it has"
    return None


def serve(page: gradio.Blocks, port: int | None, css: str, in_browser: bool = False) -> None:
    """Show the page to this machine alone, until interrupted; as `launch`."""
    print(f"{launch(page, port, css, in_browser)} (Ctrl+C ends it)", flush=True)
    page.block_thread()


def launch(page: gradio.Blocks, port: int | None, css: str, in_browser: bool = False) -> str:
    """Show the page to this machine alone, in threads of its own, until `page.close()`.

    Args:
        page: from `bild.show.web.build_page`.
        port: where to listen; None for the first free one from 7860 on.
        css: of the page.
        in_browser: open it there.

    Returns:
        Its address.

    Raises:
        BildError: the port cannot be had.
    """
    gr = import_gradio()
    from starlette.middleware import Middleware

    check_port(port)
    if port is not None:
        _require_free(port)
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        inbrowser=in_browser,
        share=False,
        ssr_mode=False,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
        theme=gr.themes.Default(
            primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
        ).set(
            block_info_text_color="*neutral_600",
            block_info_text_color_dark="*neutral_300",
            checkbox_border_color_dark="*neutral_400",
        ),
        css=css,
        app_kwargs={"middleware": [Middleware(OnlyLocal)]},
    )
    return str(address)


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class OnlyLocal:
    """An ASGI application in front of another: answers what `refusal` says is not to be answered.

    Args:
        app: the other.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refused = refusal(scope["method"], scope["path"], headers)
        if refused is None:
            await self.app(scope, receive, send)
            return
        status, sentence = refused
        kind = (b"content-type", b"text/plain; charset=utf-8")
        await send({"type": "http.response.start", "status": status, "headers": [kind]})
        await send({"type": "http.response.body", "body": f"{sentence}\n".encode()})


def import_gradio() -> ModuleType:
    """Gradio, which does not listen to the environment: the page's settings are its flags.

    Raises:
        BildError: it is not installed.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    # Before the import: nothing of this page is anybody else's business.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError:
        raise BildError(
            "the page needs Gradio; run `make web`, or pip install -r requirements-web.txt"
        ) from None
    return gradio


def _require_free(port: int) -> None:
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", port))
    except OSError as error:
        raise BildError(
            f"cannot listen on port {port} ({error.strerror}); choose another by --port"
        ) from None


def _host(header: str) -> str | None:
    """The host of a Host header, without its port; None where it is none."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _is_call(path: str) -> bool:
    return path.startswith(API) and path.removeprefix(API).split("/")[0] in CALLS
