"""Our host with an application, for clients that speak bytes: on TCP and in memory."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from asgi_bridge import serve_app
from asgi_bridge.host import hosted
from asgi_bridge.inprocess import MemoryConnection
from asyncwebsockets import Settings

from ..conftest import cut
from .scenarios import Raw

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from anyio.abc import ByteStream

    Connect = Callable[[], Awaitable[ByteStream]]
    Carrier = Callable[..., Any]

ACCEPT: dict[str, Any] = {"type": "websocket.accept"}


@asynccontextmanager
async def on_tcp(app: Any, settings: Settings | None = None) -> AsyncGenerator[Connect, None]:
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(
            partial(serve_app, app, "127.0.0.1", 0, lifespan="off", settings=settings)
        )
        yield partial(anyio.connect_tcp, "127.0.0.1", server.port)
        await server.close()


@asynccontextmanager
async def in_memory(app: Any, settings: Settings | None = None) -> AsyncGenerator[Connect, None]:
    async with hosted(app, root_path="", lifespan="off") as host:

        async def connect() -> Any:
            connection = MemoryConnection(host, settings or Settings())
            host.tasks.start_soon(connection.run)
            return connection.near

        yield connect
        await host.wait_idle()


@asynccontextmanager
async def connected(
    carrier: Carrier, app: Application, settings: Settings | None = None
) -> AsyncGenerator[Raw, None]:
    """Give a client whose handshake the application has accepted.

    Behind the block, the client is cut and the application has ended.
    """
    async with carrier(app, settings) as connect:
        stream = await connect()
        try:
            raw = Raw(stream)
            assert await raw.handshake("/") == 101
            yield raw
        finally:
            await cut(stream)
        await app.ended.wait()


class Application:
    """An application that accepts, then does what the test says; it keeps its messages.

    Args:
        behave: gets `receive` and `send` of an accepted connection.
    """

    def __init__(self, behave: Callable[[Any, Any], Awaitable[object]] | None = None) -> None:
        self.messages: list[Any] = []
        #: Set when it has ended.
        self.ended = anyio.Event()
        self._behave = behave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def keep() -> Any:
            message = await receive()
            self.messages.append(message)
            return message

        try:
            await receive()
            await send(ACCEPT)
            if self._behave is not None:
                await self._behave(keep, send)
            while not self.messages or self.messages[-1]["type"] != "websocket.disconnect":
                await keep()
        finally:
            self.ended.set()

    @property
    def end(self) -> tuple[int, str]:
        """The code and reason with which the connection has ended."""
        *_, message = self.messages
        assert message["type"] == "websocket.disconnect"
        return message["code"], message["reason"]

    @property
    def received(self) -> list[str | bytes]:
        return [
            message["bytes"] if message["text"] is None else message["text"]
            for message in self.messages
            if message["type"] == "websocket.receive"
        ]
