"""Applications of frameworks with a WebSocket layer of their own, on our host."""

from __future__ import annotations

import json
from typing import Any

import django
import pytest
import quart
import socketio
from django.conf import settings as django_settings

from asgi_bridge import open_websocket_app
from asyncwebsockets import Rejected, Websocket

# They run on asyncio only.
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True),
]


#: The codes that the consumers of Channels were told.
ends: list[int] = []


@pytest.fixture(scope="module")
def channels_app() -> Any:
    if not django_settings.configured:
        layer = {"BACKEND": "channels.layers.InMemoryChannelLayer"}
        django_settings.configure(SECRET_KEY="tests", CHANNEL_LAYERS={"default": layer})
        django.setup()
    from channels.generic.websocket import AsyncJsonWebsocketConsumer
    from channels.routing import ProtocolTypeRouter, URLRouter
    from django.urls import path

    class Echo(AsyncJsonWebsocketConsumer):  # type: ignore[misc]
        async def connect(self) -> None:
            if b"x-reject" in dict(self.scope["headers"]):
                await self.close()
                return
            # Then `receive` is raced with what the others are told, and cancelled in the end.
            await self.channel_layer.group_add("all", self.channel_name)
            await self.accept("a" if "a" in self.scope["subprotocols"] else None)

        async def receive_json(self, content: Any, **kwargs: Any) -> None:
            await self.send_json({"path": self.scope["path"], "content": content})
            if content == "tell":
                await self.channel_layer.group_send("all", {"type": "told", "number": 1})
            if content == "close":
                await self.close(4002, "bye")

        async def told(self, message: Any) -> None:
            await self.send_json({"told": message["number"]})

        async def disconnect(self, code: int) -> None:
            ends.append(code)

    return ProtocolTypeRouter({"websocket": URLRouter([path("echo", Echo.as_asgi())])})


async def test_channels(channels_app: Any) -> None:
    async with open_websocket_app(channels_app, "/echo", None, ["a"]) as ws:
        assert ws.subprotocol == "a"
        await ws.send_json([1])
        assert await ws.receive_json() == {"path": "/echo", "content": [1]}
        async with open_websocket_app(channels_app, "/echo") as other:
            for _ in range(20):
                await other.send_json("tell")
                assert await other.receive_json() == {"path": "/echo", "content": "tell"}
                assert await other.receive_json() == {"told": 1}
                assert await ws.receive_json() == {"told": 1}
            await other.close(4000)
        await ws.send_json("close")
        await ws.receive_json()
        await ended(ws, 4002, "bye")
    assert ends == [4000, 4002]
    with pytest.raises(Rejected) as caught:
        async with open_websocket_app(channels_app, "/echo", {"X-Reject": "1"}):
            pytest.fail("it was rejected")
    assert caught.value.status == 403


async def test_quart() -> None:
    app = quart.Quart(__name__)

    @app.websocket("/echo")
    async def echo() -> None:
        await quart.websocket.accept(headers={"x-a": "1"})
        await quart.websocket.send(await quart.websocket.receive())
        await quart.websocket.close(4002, "bye")

    @app.websocket("/members")
    async def members() -> tuple[str, int]:
        return "members only", 401

    async with open_websocket_app(app, "/echo", lifespan="on") as ws:
        assert ws.response.header("X-A") == "1"
        await ws.send("hello")
        assert await ws.receive_text() == "hello"
        await ended(ws, 4002, "bye")
    with pytest.raises(Rejected) as caught:
        async with open_websocket_app(app, "/members"):
            pytest.fail("it was rejected")
    assert (caught.value.status, caught.value.body) == (401, b"members only")


async def test_socketio() -> None:
    server = socketio.AsyncServer(async_mode="asgi")

    @server.event  # type: ignore[untyped-decorator]
    async def say(sid: str, data: Any) -> Any:
        return data

    app = socketio.ASGIApp(server)
    async with open_websocket_app(app, "/socket.io/?EIO=4&transport=websocket") as ws:
        opened = await ws.receive_text()
        assert opened.startswith("0{")
        await ws.send("40")
        assert (await ws.receive_text()).startswith("40{")
        await ws.send('421["say",{"a":1}]')
        acknowledged = await ws.receive_text()
        assert acknowledged.startswith("431")
        assert json.loads(acknowledged[3:]) == [{"a": 1}]


async def ended(ws: Websocket, code: int, reason: str) -> None:
    assert [event async for event in ws] == []
    assert (ws.close_code, ws.close_reason) == (code, reason)
