"""The fixtures of ``asgi_bridge.pytest_plugin``; a project of its own is in test_mount.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from asgi_bridge import pytest_plugin
from asyncwebsockets import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

# As if the plugin was named; only a root conftest.py may do that.
asgi_app = pytest_plugin.asgi_app
websocket_connect = pytest_plugin.websocket_connect


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        scope["state"]["number"] = 5
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    if scope["path"] == "/nowhere":
        await send({"type": "websocket.http.response.start", "status": 404})
        await send({"type": "websocket.http.response.body", "body": b"nowhere"})
        return
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    message = await receive()
    assert message == {"type": "websocket.connect"}
    if scope["path"] == "/raises":
        raise LookupError("the application's own")
    header = dict(scope["headers"])[b"x-a"].decode()
    says = f"{scope['path']} {header} {scope['state']['number']}"
    await send({"type": "websocket.send", "text": says})
    await send({"type": "websocket.close", "code": 4002, "reason": "bye"})


class TestAProject:
    @pytest.fixture
    def asgi_app(self) -> Any:
        return application

    async def test_a_connection(self, websocket_connect: Callable[..., Any]) -> None:
        async with websocket_connect("/there", {"X-A": "1"}, ["a"]) as ws:
            assert ws.subprotocol == "a"
            assert await ws.receive_text() == "/there 1 5"
            assert [event async for event in ws] == []
        assert (ws.close_code, ws.close_reason) == (4002, "bye")

    async def test_a_rejection(self, websocket_connect: Callable[..., Any]) -> None:
        with pytest.raises(Rejected) as caught:
            async with websocket_connect("/nowhere"):
                pytest.fail("it was rejected")
        assert (caught.value.status, caught.value.body) == (404, b"nowhere")

    async def test_a_crash(self, websocket_connect: Callable[..., Any]) -> None:
        with pytest.raises(LookupError, match="own"):
            async with websocket_connect("/raises", subprotocols=["a"]) as ws:
                await ws.receive()
        async with websocket_connect(
            "/raises", subprotocols=["a"], raise_app_exceptions=False
        ) as ws:
            assert [event async for event in ws] == []
        assert ws.close_code == 1011


def test_a_project_that_names_no_application(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.UsageError, match="expected a fixture asgi_app"):
        request.getfixturevalue("websocket_connect")
