"""The server under load: a process of its own, which is told on standard input what to do.

``python -m tests.load.server BACKEND SETTINGS``, these as JSON. Commands and their answers are
lines of JSON; the first answer, unasked, has the port.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from asyncwebsockets import Deflate, Settings, broadcast, serve

from .measure import raise_descriptor_limit, run, sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncwebsockets import Server, Websocket


class Handler:
    """Does what a connection's path asks for."""

    def __init__(self) -> None:
        self.subscribers: set[Websocket] = set()
        #: For each client of ``/record/NAME``, how many messages were recorded, and how many of
        #: these acknowledged, as far as `send` has returned.
        self.records: dict[str, list[int]] = {}

    async def __call__(self, websocket: Websocket) -> None:
        _, kind, *name = websocket.request.target.split("/")
        if kind == "subscribe":
            await self.subscribe(websocket)
        elif kind == "record":
            await self.record(websocket, self.records.setdefault(name[0], [0, 0]))
        else:
            await self.echo(websocket)

    async def subscribe(self, websocket: Websocket) -> None:
        self.subscribers.add(websocket)
        try:
            await websocket.wait_closed()
        finally:
            self.subscribers.discard(websocket)

    async def record(self, websocket: Websocket, record: list[int]) -> None:
        async for text in websocket.iter_text():
            if int(text) != record[0]:
                raise ValueError(f"expected message {record[0]}, got {text}")
            record[0] += 1
            await websocket.send(text)
            record[1] += 1

    async def echo(self, websocket: Websocket) -> None:
        async for data in messages(websocket):
            await websocket.send(data)


async def messages(websocket: Websocket) -> AsyncIterator[Any]:
    async for event in websocket:
        if hasattr(event, "data"):
            yield event.data


async def commands() -> AsyncIterator[str]:
    """Read lines from standard input without a thread."""
    buffer = b""
    while True:
        await anyio.wait_readable(sys.stdin)
        data = os.read(0, 65536)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield line.decode()


async def obey(command: str, handler: Handler, server: Server) -> object:
    match command:
        case "broadcast":
            began = time.monotonic()
            await broadcast(handler.subscribers, str(time.monotonic_ns()))
            return time.monotonic() - began
        case "sample":
            return {**sample(), "connections": len(server.connections)}
        case "cpu":
            return time.process_time()
        case "close":
            await server.close()
            return None
        case "records":
            return handler.records
    raise ValueError(f"expected a command, got {command!r}")


async def main(settings: Settings) -> None:
    handler = Handler()
    async with anyio.create_task_group() as tasks:
        server: Server = await tasks.start(
            partial(serve, handler, "127.0.0.1", 0, settings=settings)
        )
        print(json.dumps(server.port), flush=True)
        async for command in commands():
            print(json.dumps(await obey(command, handler, server)), flush=True)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    raise_descriptor_limit()
    backend, given = sys.argv[1:]
    run(main, backend, Settings(**json.loads(given), compression=Deflate(mem_level=5)))
