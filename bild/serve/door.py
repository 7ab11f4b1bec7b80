"""In front of the application: who may ask, and how large a request may be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from bild.serve.config import ServeConfig

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Door:
    """An ASGI application in front of another.

    It refuses requests addressed to a host of another name (a page elsewhere whose name was pointed
    to this machine), requests of pages of other origins, and bodies that are too large or do not
    come.

    Args:
        app: the other.
        config: the bounds.
        answered: is told of every answer: the request's path, and the status.
    """

    def __init__(self, app: App, config: ServeConfig, answered: Callable[[str, int], None]) -> None:
        self.app, self.config, self.answered = app, config, answered

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answered(scope["path"], message["status"])
            await send(message)

        await self._let_in(scope, receive, counted)

    async def _let_in(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refused = self._refusal(headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self.config.wait)
        except TimeoutError:
            await _answer(send, 408, f"the body did not come within {self.config.wait} s")
            return
        if body is None:
            await _answer(send, 413, self._too_large)
            return
        await self.app(scope, _Replay(body, receive), send)

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        """A status and a sentence; None where the request is let in."""
        if not self.config.is_allowed(host_name(headers.get("host", ""))):
            return 403, "this host name is not served here; see --allow-host"
        origin = headers.get("origin")
        if origin is not None and not self.config.is_allowed(host_name(origin.partition("//")[2])):
            return 403, "pages of other origins are not served here; see --allow-host"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.config.body:
            return 413, self._too_large
        return None

    @property
    def _too_large(self) -> str:
        return f"a request may have {self.config.body} bytes; send several"

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where it is too large. Its end is believed, not what was announced."""
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            part = message.get("body", b"")
            size += len(part)
            if size > self.config.body:
                return None
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)


class _Replay:
    """A body that has been read, for an application that reads it again."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


def host_name(authority: str) -> str:
    """The name in a Host header, without its port; empty where it is none."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
