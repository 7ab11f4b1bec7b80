"""What a service answers, and how much of it at once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from bild.errors import BildError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
RANGES = {
    "port": (0, 65_535),
    "queue": (1, 100_000),
    "workers": (1, 64),
    "batch": (1, 1024),
    "texts": (1, 10_000),
    "characters": (1, 10**7),
    "body": (1, 10**9),
    "wait": (1, 3600),
    "grace": (1, 3600),
}


@dataclass(frozen=True)
class ServeConfig:
    """Where a service listens, and its bounds.

    Attributes:
        host: address to listen on.
        port: 0 for a free one.
        allow_host: names that requests may be addressed to besides those of this machine itself;
            needed where it listens on more than this machine.
        queue: texts that may wait; more are answered with 503 and when to come again.
        workers: threads that decode.
        batch: texts that a thread decodes together, if so many wait.
        texts: of one request.
        characters: of one text.
        body: bytes of one request.
        wait: seconds that a text may wait before it is given up, and that a body may take to come.
        grace: seconds that are given to what runs when the service is told to end.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allow_host: tuple[str, ...] = ()
    queue: int = 256
    workers: int = 1
    batch: int = 8
    texts: int = 64
    characters: int = 20_000
    body: int = 1_000_000
    wait: int = 60
    grace: int = 60

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise BildError(f"--{name} must be {least} to {most}, got {value}")
        try:
            loopback = self.host in LOOPBACK or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            raise BildError(f"--host must be an IP address, got {self.host!r}") from None
        if not loopback and not self.allow_host:
            raise BildError(
                f"--host {self.host} answers other machines; name what they call this one with "
                "--allow-host, as --allow-host translate.example"
            )

    def is_allowed(self, name: str) -> bool:
        """Whether a request may be addressed to a host of this name."""
        return name in (*LOOPBACK, *self.allow_host)
