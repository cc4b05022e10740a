"""picows, by its callbacks."""

from __future__ import annotations

from functools import partial

import picows
from picows import WSFrame, WSListener, WSMsgType, WSTransport

from . import MAX_SIZE, Options, options, run

people: set[WSTransport] = set()


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class Hub(Echo):
    def on_ws_connected(self, transport: WSTransport) -> None:
        people.add(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            people.discard(transport)
            super().on_ws_frame(transport, frame)
            return
        data = frame.get_payload_as_bytes()
        for member in people:
            member.send(frame.msg_type, data)


async def main(chosen: Options) -> None:
    listener = Hub if chosen.broadcast else Echo
    server = await picows.ws_create_server(
        lambda request: listener(),
        "127.0.0.1",
        chosen.port,
        ssl=chosen.tls,
        max_frame_size=MAX_SIZE,
        enable_auto_ping=chosen.keepalive,
    )
    await server.serve_forever()


if __name__ == "__main__":
    chosen = options()
    run(partial(main, chosen), chosen.loop)
