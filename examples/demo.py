"""A chat with a page, on loopback; `make demo` runs it.

One handler serves both: mounted in a Starlette application under hypercorn, and on a socket of the
library's own beside it.

DEMO_SECONDS=5 serves that long, makes a round trip through the client on both, and ends.
DEMO_PORT=8765 is where the application listens.
"""

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import hypercorn.asyncio
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route

from asgi_bridge import WebsocketApp
from asyncwebsockets import (
    ConnectionClosed,
    Server,
    Websocket,
    open_websocket,
    origin_filter,
    serve,
)

PAGE = Path(__file__).with_name("page.html")

people: set[Websocket] = set()


@asynccontextmanager
async def present(websocket: Websocket) -> AsyncIterator[None]:
    people.add(websocket)
    try:
        yield
    finally:
        people.discard(websocket)


async def tell(websocket: Websocket, text: str) -> None:
    try:
        await websocket.send(text)
    except ConnectionClosed:
        # Its own handler notices, too.
        people.discard(websocket)


async def chat(websocket: Websocket) -> None:
    async with present(websocket):
        async for text in websocket.iter_text():
            async with anyio.create_task_group() as tasks:
                for other in list(people):
                    tasks.start_soon(tell, other, text)


# Only pages that this server gave out may connect; clients that are no browsers may, too.
only_own_pages = origin_filter()

app = Starlette(
    routes=[
        Route("/", lambda request: FileResponse(PAGE)),
        Mount("/chat", WebsocketApp(chat, only_own_pages)),
    ]
)


async def run_hypercorn(descriptor: int, ended: anyio.Event) -> None:
    config = Config()
    config.bind = [f"fd://{descriptor}"]
    config.loglevel = "WARNING"
    config.graceful_timeout = 1
    await hypercorn.asyncio.serve(app, config, shutdown_trigger=ended.wait)  # type: ignore[arg-type]


async def round_trip(url: str) -> None:
    async with open_websocket(url) as websocket:
        await websocket.send("hello from the client")
        answer = await websocket.receive_text()
        milliseconds = await websocket.ping() * 1000
        print(f"The client said and heard {answer!r}; a ping took {milliseconds:.1f} ms.")


async def main() -> None:
    seconds = float(os.environ.get("DEMO_SECONDS", "0"))
    port = int(os.environ.get("DEMO_PORT", "0" if seconds else "8765"))
    ended = anyio.Event()
    sock = socket.create_server(("127.0.0.1", port))
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    async with anyio.create_task_group() as tasks:
        # hypercorn closes it.
        tasks.start_soon(run_hypercorn, sock.detach(), ended)
        beside: Server = await tasks.start(
            partial(serve, chat, "127.0.0.1", 0, filter=only_own_pages)
        )
        urls = [f"ws://{address}/chat/", f"ws://127.0.0.1:{beside.port}/"]
        print(f"Open http://{address}/ in your browser, best in two tabs.")
        print("What to try next, with the page open:")
        for url, where in zip(urls, ("under hypercorn", "on a bare socket"), strict=True):
            print(f"  .venv/bin/python examples/client.py {url}  # {where}")
        print("  README.md has a server of your own in ten lines, docs/ has the rest.")
        if seconds:
            for url in urls:
                await round_trip(url)
            await anyio.sleep(seconds)
        else:
            print("Ctrl-C ends it.")
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    break
        # hypercorn has nothing like it: what is open when it ends, it cuts.
        async with anyio.create_task_group() as closing:
            for websocket in people:
                closing.start_soon(websocket.close, 1001, "The demo is over.")
        await beside.close(1001, "The demo is over.")
        ended.set()


if __name__ == "__main__":
    anyio.run(main)
