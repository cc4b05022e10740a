"""This library. Variants: stream, and whose deflate parameters to use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from asyncwebsockets import (
    ConnectionClosed,
    Deflate,
    Settings,
    Websocket,
    broadcast,
    open_websocket_server,
    serve,
)
from asyncwebsockets.events import BytesMessage, TextMessage

from . import MAX_SIZE, Options, options

if TYPE_CHECKING:
    from anyio.abc import SocketStream

DEFLATE = {
    "": Deflate(),
    # What they compress with when they are not told otherwise.
    "as-aiohttp": Deflate(level=1),
    "as-websockets": Deflate(server_max_window_bits=12, client_max_window_bits=12, mem_level=5),
}

people: set[Websocket] = set()


async def echo(websocket: Websocket) -> None:
    async for event in websocket:
        if isinstance(event, (BytesMessage, TextMessage)):
            await websocket.send(event.data)


async def hub(websocket: Websocket) -> None:
    people.add(websocket)
    async for event in websocket:
        if isinstance(event, (BytesMessage, TextMessage)):
            await broadcast(people, event.data)


async def main(chosen: Options) -> None:
    settings = Settings(
        max_message_size=MAX_SIZE,
        ping_interval=chosen.ping_interval,
        compression=DEFLATE[chosen.variant] if chosen.deflate else None,
    )
    if chosen.variant != "stream":
        handler = hub if chosen.broadcast else echo
        await serve(handler, "127.0.0.1", chosen.port, ssl=chosen.tls, settings=settings)
        return

    async def accept(stream: SocketStream) -> None:
        async with open_websocket_server(stream, settings=settings) as websocket:
            try:
                await echo(websocket)
            except ConnectionClosed:
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=chosen.port)
    await listener.serve(accept)


if __name__ == "__main__":
    chosen = options()
    if chosen.loop == "trio":
        anyio.run(main, chosen, backend="trio")
    else:
        anyio.run(main, chosen, backend_options={"use_uvloop": chosen.loop == "uvloop"})
