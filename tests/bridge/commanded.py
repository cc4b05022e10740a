"""Applications for the tests of the command."""

from __future__ import annotations

import os
import sys
from typing import Any

import anyio

ACCEPT: dict[str, Any] = {"type": "websocket.accept"}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Say who serves, then wait for the end; ``/stuck`` does not care about it."""
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    await receive()
    await send(ACCEPT)
    says = f"{os.getpid()} {scope['path']} {scope['scheme']}"
    await send({"type": "websocket.send", "text": says})
    while (await receive())["type"] != "websocket.disconnect":
        pass
    if scope["path"].endswith("/stuck"):
        await anyio.sleep_forever()


async def fails(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise LookupError("no database")


async def fails_at_the_end(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.failed", "message": "no database"})


async def hangs(scope: Any, receive: Any, send: Any) -> None:
    print("begun", file=sys.stderr, flush=True)
    await anyio.sleep_forever()


async def starts_when_told(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        print("begun", file=sys.stderr, flush=True)
        await anyio.wait_readable(sys.stdin)
    await application(scope, receive, send)


async def hangs_at_the_end(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("ending", file=sys.stderr, flush=True)
    await anyio.sleep_forever()
