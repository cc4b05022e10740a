"""websockets. Variant: picows, whose module has the same interface."""

from __future__ import annotations

from typing import Any

import picows.websockets
import websockets.asyncio.client
import websockets.trio.client

from . import MAX_SIZE, Options, main


async def connection(chosen: Options) -> None:
    connect: Any = websockets.asyncio.client.connect
    if chosen.loop == "trio":
        connect = websockets.trio.client.connect
    elif chosen.variant == "picows":
        connect = picows.websockets.connect
    message = chosen.message
    async with connect(
        chosen.url, max_size=MAX_SIZE, compression=None, ping_interval=None, proxy=None
    ) as websocket:
        while True:
            for _ in range(chosen.in_flight):
                await websocket.send(message)
            for _ in range(chosen.in_flight):
                await websocket.recv()


if __name__ == "__main__":
    main(connection)
