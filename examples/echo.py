"""An echo: ``python examples/echo.py [port]``; text stays text, binary stays binary."""

import sys

import anyio

from asyncwebsockets import Websocket, serve
from asyncwebsockets.events import Message


async def echo(websocket: Websocket) -> None:
    async for event in websocket:
        if isinstance(event, Message):
            await websocket.send(event.data)


if __name__ == "__main__":
    anyio.run(serve, echo, "127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8765)
