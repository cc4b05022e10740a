"""Types: what is written for ASGI elsewhere fits here, and the other way round.

mypy checks it, each "type: ignore" included: one that nothing needs is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import anyio
import pytest
from asgiref.typing import (
    LifespanScope,
    LifespanShutdownEvent,
    LifespanStartupEvent,
    WebSocketConnectEvent,
    WebSocketDisconnectEvent,
    WebSocketReceiveEvent,
    WebSocketScope,
)
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, WebSocketRoute

from asgi_bridge import WebsocketApp, open_websocket_app, serve_app
from asyncwebsockets import open_websocket

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


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what a type of asgiref says."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return True
    if hint in (None, NoneType):
        return value is None
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        return (
            hint.__required_keys__ <= set(value) <= set(hints)
            and type(value) is dict
            and all(fits(value[name], hints[name]) for name in value)
        )
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is tuple:
        return type(value) is tuple and len(value) == len(args) and all(map(fits, value, args))
    if origin is dict:
        return type(value) is dict and all(
            fits(key, args[0]) and fits(item, args[1]) for key, item in value.items()
        )
    if origin is Iterable:
        return not isinstance(value, str | bytes) and all(fits(item, args[0]) for item in value)
    return type(value) is hint


def test_what_fits_a_type() -> None:
    message = {"type": "websocket.receive", "bytes": None, "text": "a"}
    assert fits(message, WebSocketReceiveEvent)
    for wrong in ({"text": b"a"}, {"type": "websocket.connect"}, {"unknown": 1}):
        assert not fits({**message, **wrong}, WebSocketReceiveEvent)
    assert not fits({"type": "websocket.receive", "bytes": None}, WebSocketReceiveEvent)
    for value, hint in (
        (["::1", 80], tuple[str, int]),
        (("::1", "80"), tuple[str, int]),
        ([(b"a", "b")], Iterable[tuple[bytes, bytes]]),
        ("a", Iterable[str]),
        (None, dict[str, Any]),
        ({"a": 1}, dict[str, dict[Any, Any]] | None),
    ):
        assert not fits(value, hint)


@pytest.mark.parametrize("where", ["TCP", "memory"])
async def test_all_that_an_application_gets_has_asgirefs_types(where: str) -> None:
    lifespan: list[Any] = []
    connection: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got = lifespan if scope["type"] == "lifespan" else connection
        got.append(scope)
        if got is lifespan:
            for phase in ("startup", "shutdown"):
                got.append(await receive())
                await send({"type": f"lifespan.{phase}.complete"})
            return
        got.append(await receive())
        await send({"type": "websocket.accept", "subprotocol": "a"})
        for _ in range(3):
            got.append(await receive())

    async def use(ws: Websocket) -> None:
        await ws.send("text")
        await ws.send(b"bytes")
        await ws.close(4000, "over")

    if where == "memory":
        async with open_websocket_app(app, "/a?b", {"x-a": "1"}, ["a"]) as ws:
            await use(ws)
    else:
        async with anyio.create_task_group() as tasks:
            server: Server = await tasks.start(partial(serve_app, app, "127.0.0.1", 0))
            url = f"ws://127.0.0.1:{server.port}/a?b"
            async with open_websocket(url, {"x-a": "1"}, ["a"]) as ws:
                await use(ws)
            await server.close()
    receives = WebSocketReceiveEvent, WebSocketReceiveEvent, WebSocketDisconnectEvent
    for got, hints in (
        (lifespan, [LifespanScope, LifespanStartupEvent, LifespanShutdownEvent]),
        (connection, [WebSocketScope, WebSocketConnectEvent, *receives]),
    ):
        for value, hint in zip(got, hints, strict=True):
            assert fits(value, hint), (value, hint)


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
