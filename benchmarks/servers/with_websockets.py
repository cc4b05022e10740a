"""websockets. Variant: picows, whose module has the same interface."""

from __future__ import annotations

from functools import partial
from typing import Any

import picows.websockets
import websockets.asyncio.server
import websockets.trio.server

from . import MAX_SIZE, Options, options, run

people: set[Any] = set()


async def echo(websocket: Any) -> None:
    async for message in websocket:
        await websocket.send(message)


async def trio_hub(websocket: Any) -> None:
    people.add(websocket)
    async for message in websocket:
        for member in people:
            await member.send(message)


async def hub(broadcast: Any, websocket: Any) -> None:
    people.add(websocket)
    async for message in websocket:
        broadcast(people, message)


async def main(chosen: Options) -> None:
    common: dict[str, Any] = {
        "ssl": chosen.tls,
        "max_size": MAX_SIZE,
        "compression": "deflate" if chosen.deflate else None,
        "ping_interval": chosen.ping_interval,
    }
    if chosen.loop == "trio":
        handler = trio_hub if chosen.broadcast else echo
        await websockets.trio.server.serve(handler, chosen.port, host="127.0.0.1", **common)
        return
    serve: Any = websockets.asyncio.server.serve
    broadcast: Any = websockets.asyncio.server.broadcast
    if chosen.variant == "picows":
        serve, broadcast = picows.websockets.serve, picows.websockets.broadcast
    handler = partial(hub, broadcast) if chosen.broadcast else echo
    async with serve(handler, "127.0.0.1", chosen.port, **common) as server:
        await server.serve_forever()


if __name__ == "__main__":
    chosen = options()
    run(partial(main, chosen), chosen.loop)
