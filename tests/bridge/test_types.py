"""Types: what is written for ASGI elsewhere fits here, and the other way round.

mypy checks it, each "type: ignore" included: one that nothing needs is an error.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, WebSocketRoute

from asgi_bridge import WebsocketApp, open_websocket_app, serve_app

if TYPE_CHECKING:
    from asgiref.typing import (
        ASGI3Application,
        ASGIApplication,
        ASGIReceiveCallable,
        ASGISendCallable,
        Scope,
        WebSocketAcceptEvent,
        WebSocketCloseEvent,
    )
    from hypercorn.typing import ASGIFramework
    from starlette.types import ASGIApp, Message, Receive, Send
    from starlette.types import Scope as StarletteScope
    from uvicorn._types import ASGI3Application as UvicornApplication

    from asyncwebsockets import Server, Websocket

pytestmark = pytest.mark.anyio


async def handler(ws: Websocket) -> None:
    await ws.send("hello")


async def with_asgirefs_types(
    scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    if scope["type"] != "websocket":
        raise NotImplementedError
    event = await receive()
    assert event["type"] == "websocket.connect"
    accept: WebSocketAcceptEvent = {
        "type": "websocket.accept",
        "subprotocol": None,
        "headers": [],
    }
    await send(accept)
    close: WebSocketCloseEvent = {"type": "websocket.close", "code": 4000, "reason": "typed"}
    await send(close)


async def with_starlettes_types(scope: StarletteScope, receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        raise NotImplementedError
    event: Message = await receive()
    assert event["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 4000, "reason": "typed"})


async def closed_with(app: ASGI3Application | ASGIApp) -> tuple[int | None, str | None]:
    async with open_websocket_app(app, "/") as ws:
        assert [event async for event in ws] == []
    return ws.close_code, ws.close_reason


async def test_an_application_with_types_of_its_own() -> None:
    typed: ASGI3Application = with_asgirefs_types
    either: ASGIApp = with_starlettes_types
    assert await closed_with(typed) == await closed_with(either) == (4000, "typed")
    async with anyio.create_task_group() as tasks:
        server: Server = await tasks.start(partial(serve_app, typed, "127.0.0.1", 0))
        await server.close()
        server = await tasks.start(partial(serve_app, either, "127.0.0.1", 0))
        await server.close()


async def greeting(app: Any) -> str:
    async with open_websocket_app(app, "/") as ws:
        return await ws.receive_text()


async def test_a_handler_where_an_application_is_wanted() -> None:
    endpoint = WebsocketApp(handler)
    asgiref: ASGI3Application = endpoint
    any_version: ASGIApplication = endpoint
    starlette: ASGIApp = endpoint
    uvicorn: UvicornApplication = endpoint
    hypercorn: ASGIFramework = endpoint
    wrapped = CORSMiddleware(endpoint, allow_origins=["*"])
    routed = Starlette(routes=[WebSocketRoute("/", endpoint), Mount("/mounted", endpoint)])
    for app in (asgiref, any_version, starlette, uvicorn, hypercorn, wrapped, routed):
        assert await greeting(app) == "hello"


async def test_what_is_no_application() -> None:
    with pytest.raises(TypeError):
        await serve_app(handler, "127.0.0.1", 0, lifespan="on")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        async with open_websocket_app(handler, "/"):  # type: ignore[arg-type]
            pytest.fail("it takes one argument")
