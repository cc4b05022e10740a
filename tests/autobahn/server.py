"""The echo server that the Autobahn suite tests."""

from __future__ import annotations

import argparse

import anyio

from asyncwebsockets import Deflate, Server, Settings, Websocket, serve
from asyncwebsockets.events import BytesMessage, TextMessage

# Pings of ours would count among the events of a case. The suite sends gigabytes to be
# compressed and does not look at how small they get.
SETTINGS = Settings(compression=Deflate(level=1), ping_interval=None)


async def echo(ws: Websocket) -> None:
    async for evt in ws:
        if isinstance(evt, (TextMessage, BytesMessage)):
            await ws.send(evt.data)


async def main() -> None:
    async with anyio.create_task_group() as tasks:

        async def listen(*, task_status: anyio.abc.TaskStatus[Server]) -> None:
            await serve(echo, "127.0.0.1", 0, settings=SETTINGS, task_status=task_status)

        server = await tasks.start(listen)
        _, port = server.addresses[0]
        print(port, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=["asyncio", "uvloop", "trio"])
    backend = parser.parse_args().backend
    if backend == "uvloop":
        anyio.run(main, backend="asyncio", backend_options={"use_uvloop": True})
    else:
        anyio.run(main, backend=backend)
