"""The clients of the race, each a module with the same command line.

On each of its connections a client sends so many messages, receives as many, and begins again,
until it is killed. The server at the other end is the load. No compression, no keepalive.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from ..servers import MAX_SIZE, run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["MAX_SIZE", "Options", "main", "options", "run"]


@dataclass(frozen=True)
class Options:
    """The command line."""

    port: int
    loop: str
    connections: int
    in_flight: int
    size: int
    #: Which of its own ways a client is to use, where it has several.
    variant: str

    @property
    def url(self) -> str:
        """Where to connect."""
        return f"ws://127.0.0.1:{self.port}/"

    @property
    def message(self) -> bytes:
        """What to send."""
        return bytes(self.size)


def options() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio"], required=True)
    for number in ("port", "connections", "in-flight", "size"):
        parser.add_argument(f"--{number}", type=int, required=True)
    parser.add_argument("--variant", default="")
    return Options(**vars(parser.parse_args()))


def main(connection: Callable[[Options], Coroutine[Any, Any, object]]) -> None:
    """Run one task for each connection."""
    chosen = options()

    async def start() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(chosen.connections):
                tasks.start_soon(connection, chosen)

    run(start, chosen.loop)
