"""The ASGI applications: a bare one, and ours with a handler in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgi_bridge import WebsocketApp
from asyncwebsockets import Settings

from .with_ours import echo as handler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def echo(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    await receive()
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


mounted = WebsocketApp(handler, settings=Settings(ping_interval=None))


def application(name: bool) -> Any:
    return mounted if name else echo
