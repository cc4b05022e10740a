"""The document this library was made from, to the letter."""

from __future__ import annotations

import inspect
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import asyncwebsockets
import asyncwebsockets.client
import asyncwebsockets.server

from .conftest import memory_pair

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("codec")]

REQUIRED = inspect.Parameter.empty

SIGNATURES: list[Any] = [
    ("client", "open_websocket", [("url", REQUIRED), ("headers", None), ("subprotocols", None)]),
    (
        "client",
        "create_websocket",
        [("url", REQUIRED), ("ssl", None), ("headers", None), ("subprotocols", None)],
    ),
    *(
        (
            "client",
            name,
            [
                ("sock", REQUIRED),
                ("addr", REQUIRED),
                ("path", REQUIRED),
                ("headers", None),
                ("subprotocols", None),
            ],
        )
        for name in ("open_websocket_client", "create_websocket_client")
    ),
    *(
        ("server", name, [("sock", REQUIRED), ("filter", None)])
        for name in ("open_websocket_server", "create_websocket_server")
    ),
]


@pytest.mark.parametrize(("module", "name", "parameters"), SIGNATURES)
def test_functions_have_the_seeds_parameters(
    module: str, name: str, parameters: list[tuple[str, object]], anyio_backend: object
) -> None:
    function = getattr(getattr(asyncwebsockets, module), name)
    assert getattr(asyncwebsockets, name) is function
    found = inspect.signature(function).parameters.values()
    positional = [(p.name, p.default) for p in found if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == parameters
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in found)
    # Whatever is new has a default.
    assert all(p.default is not REQUIRED for p in found if p.kind is p.KEYWORD_ONLY)


def test_methods_have_the_seeds_parameters(anyio_backend: object) -> None:
    send = inspect.signature(asyncwebsockets.Websocket.send).parameters
    assert list(send) == ["self", "data", "final"]
    assert send["final"].default is True
    close = inspect.signature(asyncwebsockets.Websocket.close).parameters
    assert list(close) == ["self", "code", "reason"]
    assert close["code"].default == 1006
    assert close["reason"].default == "Connection closed"


async def echo_server(listener: Any, messages: list[str]) -> None:
    sock = await listener.accept()
    async with await asyncwebsockets.server.open_websocket_server(sock, filter=None) as websocket:
        async for evt in websocket:
            messages.append(type(evt).__name__)
            from wsproto.events import TextMessage

            if isinstance(evt, TextMessage):
                await websocket.send("Thanks for saying '%s'!" % (evt.data,))  # noqa: UP031


async def test_the_seeds_snippets_run() -> None:
    messages: list[str] = []
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as multi:
        listener = multi.listeners[0]
        url = f"ws://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/"
        async with anyio.create_task_group() as tg:
            tg.start_soon(echo_server, listener, messages)
            async with await asyncwebsockets.client.open_websocket(
                url, headers=None, subprotocols=None
            ) as websocket:
                await websocket.send("hello", final=True)
                async for evt in websocket:
                    from wsproto.events import Message, TextMessage

                    assert isinstance(evt, TextMessage)
                    assert isinstance(evt, Message)
                    assert evt.data == "Thanks for saying 'hello'!"
                    await websocket.close(1000, reason="Goodbye!")
            tg.start_soon(echo_server, listener, messages)
            websocket = await asyncwebsockets.client.create_websocket(
                url, ssl=None, headers=None, subprotocols=None
            )
            await websocket.send("again")
            assert await websocket.receive_text() == "Thanks for saying 'again'!"
            await websocket.close()
    assert messages == ["TextMessage", "TextMessage"]


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("decision", ["accept", "reject"])
async def test_the_seeds_forms_on_a_socket(create: bool, decision: str) -> None:
    near, far = memory_pair()

    async def filter(request: Any) -> Any:
        from wsproto.events import AcceptConnection, RejectConnection

        assert request.target == "/path"
        return AcceptConnection() if decision == "accept" else RejectConnection(status_code=401)

    async def serve() -> None:
        try:
            if create:
                websocket = await asyncwebsockets.server.create_websocket_server(far, filter=filter)
                assert [evt async for evt in websocket] == []
                await websocket.close()
            else:
                async with await asyncwebsockets.server.open_websocket_server(
                    far, filter=filter
                ) as websocket:
                    assert [evt async for evt in websocket] == []
        except asyncwebsockets.Rejected as exc:
            assert decision == "reject"
            assert exc.status == 401

    async with anyio.create_task_group() as tg:
        tg.start_soon(serve)
        addr = ("example.com", 80)
        try:
            if create:
                websocket = await asyncwebsockets.client.create_websocket_client(
                    near, addr, "/path", headers=None, subprotocols=None
                )
                await websocket.close()
            else:
                async with await asyncwebsockets.client.open_websocket_client(
                    near, addr, "/path", headers=None, subprotocols=None
                ) as websocket:
                    pass
        except asyncwebsockets.Rejected as exc:
            assert decision == "reject"
            assert exc.status == 401
        else:
            assert decision == "accept"
            assert websocket.close_code == 1000
