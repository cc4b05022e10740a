"""The server of README: it thanks for every text."""

import anyio

from asyncwebsockets import Websocket, serve
from asyncwebsockets.events import TextMessage


async def handler(websocket: Websocket) -> None:
    async for evt in websocket:
        if isinstance(evt, TextMessage):
            await websocket.send(f"Thanks for saying '{evt.data}'!")


if __name__ == "__main__":
    anyio.run(serve, handler, "127.0.0.1", 8765)
