"""aiohttp."""

from __future__ import annotations

import aiohttp

from . import MAX_SIZE, Options, main


async def connection(chosen: Options) -> None:
    message = chosen.message
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(chosen.url, max_msg_size=MAX_SIZE) as websocket,
    ):
        while True:
            for _ in range(chosen.in_flight):
                await websocket.send_bytes(message)
            for _ in range(chosen.in_flight):
                await websocket.receive_bytes()


if __name__ == "__main__":
    main(connection)
