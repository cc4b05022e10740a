"""picows, by its callbacks."""

from __future__ import annotations

import picows
from picows import WSFrame, WSListener, WSMsgType, WSTransport

from . import MAX_SIZE, Options, main


class Sender(WSListener):
    def __init__(self, chosen: Options) -> None:
        self._message = chosen.message
        self._in_flight = self._due = chosen.in_flight

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._send(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        frame.get_payload_as_bytes()
        self._due -= 1
        if not self._due:
            self._due = self._in_flight
            self._send(transport)

    def _send(self, transport: WSTransport) -> None:
        for _ in range(self._in_flight):
            transport.send(WSMsgType.BINARY, self._message)


async def connection(chosen: Options) -> None:
    transport, _ = await picows.ws_connect(
        lambda: Sender(chosen), chosen.url, max_frame_size=MAX_SIZE
    )
    await transport.wait_disconnected()


if __name__ == "__main__":
    main(connection)
