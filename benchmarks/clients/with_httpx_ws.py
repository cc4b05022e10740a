"""httpx-ws."""

from __future__ import annotations

import httpx
from httpx_ws import AsyncWebSocketSession, aconnect_ws

from . import MAX_SIZE, Options, main


async def connection(chosen: Options) -> None:
    message = chosen.message
    async with httpx.AsyncClient(trust_env=False) as client:
        websocket: AsyncWebSocketSession
        async with aconnect_ws(
            chosen.url,
            client,
            max_message_size_bytes=MAX_SIZE,
            queue_size=chosen.in_flight,
            keepalive_ping_interval_seconds=None,
        ) as websocket:
            while True:
                for _ in range(chosen.in_flight):
                    await websocket.send_bytes(message)
                for _ in range(chosen.in_flight):
                    await websocket.receive_bytes()


if __name__ == "__main__":
    main(connection)
