"""This library."""

from __future__ import annotations

from asyncwebsockets import Settings, open_websocket

from . import MAX_SIZE, Options, main


async def connection(chosen: Options) -> None:
    settings = Settings(max_message_size=MAX_SIZE, ping_interval=None)
    message = chosen.message
    async with open_websocket(chosen.url, settings=settings) as websocket:
        while True:
            for _ in range(chosen.in_flight):
                await websocket.send(message)
            for _ in range(chosen.in_flight):
                await websocket.receive_bytes()


if __name__ == "__main__":
    main(connection)
