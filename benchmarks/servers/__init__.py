"""The servers of the race, each a module with the same command line.

Each echoes, or hands every message to all of its connections. They are set as their documentation
recommends, and alike where it matters: compression only where it is asked for, 16 MiB for a
message, and no keepalive unless it is asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MAX_SIZE = 16 * 2**20


@dataclass(frozen=True)
class Options:
    """The command line."""

    port: int
    loop: str
    #: A PEM file with the key, for TLS.
    certificate: str | None
    deflate: bool
    broadcast: bool
    keepalive: bool
    #: Which of its own ways a server is to use, where it has several.
    variant: str
    #: An ASGI server runs our endpoint in place of a bare application.
    mounted: bool

    @property
    def tls(self) -> ssl.SSLContext | None:
        """A context for the certificate."""
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate)
        return context

    @property
    def ping_interval(self) -> float | None:
        """What most have by default, or None."""
        return 20 if self.keepalive else None


def options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio", "none"], required=True)
    parser.add_argument("--certificate")
    parser.add_argument("--variant", default="")
    for flag in ("deflate", "broadcast", "keepalive", "mounted"):
        parser.add_argument(f"--{flag}", action="store_true")
    return Options(**vars(parser.parse_args()))


def run(main: Callable[[], Coroutine[Any, Any, object]], loop: str) -> None:
    """Run a coroutine function on a loop."""
    if loop == "trio":
        import trio

        trio.run(main)
    elif loop == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
