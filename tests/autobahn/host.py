"""The echo application, run by `serve_app`, that the Autobahn suite tests."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

import anyio

from asgi_bridge import serve_app
from tests.autobahn.server import SETTINGS

if TYPE_CHECKING:
    from asgi_bridge.messages import Receive, Scope, Send
    from asyncwebsockets import Server


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        raise ValueError(f"expected a scope of type websocket, got {scope['type']!r}")
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({**message, "type": "websocket.send"})


async def main() -> None:
    async with anyio.create_task_group() as tasks:
        server: Server = await tasks.start(
            partial(serve_app, echo, "127.0.0.1", 0, settings=SETTINGS)
        )
        print(server.port, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=["asyncio", "uvloop", "trio"])
    backend = parser.parse_args().backend
    if backend == "uvloop":
        anyio.run(main, backend="asyncio", backend_options={"use_uvloop": True})
    else:
        anyio.run(main, backend=backend)
