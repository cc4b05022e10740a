"""trio-websocket."""

from __future__ import annotations

from trio_websocket import open_websocket_url

from . import MAX_SIZE, Options, main


async def connection(chosen: Options) -> None:
    message = chosen.message
    # The messages that wait to be received: none may be left out, or its reader stands still.
    async with open_websocket_url(
        chosen.url, max_message_size=MAX_SIZE, message_queue_size=chosen.in_flight
    ) as websocket:
        while True:
            for _ in range(chosen.in_flight):
                await websocket.send_message(message)
            for _ in range(chosen.in_flight):
                await websocket.get_message()


if __name__ == "__main__":
    main(connection)
