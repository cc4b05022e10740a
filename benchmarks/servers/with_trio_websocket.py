"""trio-websocket."""

from __future__ import annotations

from functools import partial

import trio_websocket
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest

from . import MAX_SIZE, Options, options, run

people: set[WebSocketConnection] = set()


async def handle(chosen: Options, request: WebSocketRequest) -> None:
    websocket = await request.accept()
    people.add(websocket)
    try:
        while True:
            message = await websocket.get_message()
            for member in people if chosen.broadcast else (websocket,):
                await member.send_message(message)
    except ConnectionClosed:
        people.discard(websocket)


async def main(chosen: Options) -> None:
    await trio_websocket.serve_websocket(
        partial(handle, chosen),
        "127.0.0.1",
        chosen.port,
        chosen.tls,
        max_message_size=MAX_SIZE,
    )


if __name__ == "__main__":
    chosen = options()
    run(partial(main, chosen), chosen.loop)
