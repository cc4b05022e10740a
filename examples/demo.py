"""A chat server with its page, on loopback; `make demo` runs it.

DEMO_SECONDS=5 serves that long, makes one round trip through the client, and ends.
DEMO_PORT=8765 is where it listens.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from asyncwebsockets import (
    ConnectionClosed,
    Reject,
    Request,
    Server,
    Websocket,
    open_websocket,
    origin_filter,
    serve,
)

PAGE = Path(__file__).with_name("page.html").read_bytes()

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


async def page(request: Request) -> Reject | None:
    """Answer plain HTTP: the page, or 426 for any other path."""
    if request.path != "/":
        return None
    return Reject(200, [("Content-Type", "text/html; charset=utf-8")], PAGE)


async def run(port: int, task_status: TaskStatus[Server]) -> None:
    # Only pages that this server gave out may connect; clients that are no browsers may, too.
    await serve(
        chat, "127.0.0.1", port, filter=origin_filter(), on_http=page, task_status=task_status
    )


async def round_trip(url: str) -> None:
    async with open_websocket(url) as websocket:
        await websocket.send("hello from the client")
        answer = await websocket.receive_text()
        milliseconds = await websocket.ping() * 1000
        print(f"The client said and heard {answer!r}; a ping took {milliseconds:.1f} ms.")


async def main() -> None:
    seconds = float(os.environ.get("DEMO_SECONDS", "0"))
    port = int(os.environ.get("DEMO_PORT", "0" if seconds else "8765"))
    async with anyio.create_task_group() as tasks:
        server: Server = await tasks.start(run, port)
        url = f"ws://127.0.0.1:{server.port}/"
        print(f"Open http://127.0.0.1:{server.port}/ in your browser, best in two tabs.")
        print("What to try next:")
        print(f"  .venv/bin/python examples/client.py {url}")
        print("  README.md has a server of your own in ten lines, docs/ has the rest.")
        if seconds:
            await round_trip(url)
            await anyio.sleep(seconds)
            await server.close(1001, "The demo is over.")
        else:
            print("Ctrl-C ends it.")


if __name__ == "__main__":
    try:
        anyio.run(main)
    except KeyboardInterrupt:
        print()
