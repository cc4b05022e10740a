"""Other clients than ours, with handlers mounted in ASGI servers."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import anyio
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from asyncwebsockets.codec import make_codec
from asyncwebsockets.events import BytesMessage, CloseConnection, Event, TextMessage

from ..peers.peer import Closed, Options, Peer, Refused
from ..peers.with_aiohttp import Aiohttp
from ..peers.with_chromium import Chromium
from ..peers.with_httpx_ws import HttpxWs
from ..peers.with_websockets import Websockets
from ..peers.with_ws import Ws
from .scenarios import Client
from .servers import SERVERS, AsgiServer, Fleet

if TYPE_CHECKING:
    from anyio.abc import ByteStream

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True),
]

HYPERCORN = [server for server in SERVERS if server.name.startswith("hypercorn")]
WITH_DENIALS = [HYPERCORN[0], *(server for server in SERVERS if "uvicorn" in server.name)]


@pytest.mark.parametrize("server", WITH_DENIALS, ids=lambda server: server.name)
@pytest.mark.parametrize(
    "kind", [Websockets, Aiohttp, HttpxWs, Ws, Chromium], ids=lambda kind: kind.name
)
async def test_another_client(kind: type[Peer], server: AsgiServer, fleet: Fleet) -> None:
    missing = kind.missing()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    url = f"ws://127.0.0.1:{fleet.port(server)}"
    peer = kind()
    async with peer.running():
        async with peer.connect(f"{url}/echo", Options(subprotocols=["a", "b"])) as end:
            assert end.subprotocol == "a"
            for data in ("größer", b"\x00\xff", "x" * 100_000):
                await end.send(data)
                assert await end.receive() == [data]
            await end.close(4001, "over")
        async with peer.connect(f"{url}/closes", Options()) as end:
            assert await end.closed() == Closed(4002, "bye")
        with pytest.raises(Refused) as caught:
            async with peer.connect(f"{url}/reject-bytes", Options()):
                pass
        assert caught.value.status == (404 if peer.shows_refusal else None)
        if kind is Chromium:
            assert caught.value.code == 1006
            # It would fail a connection whose subprotocol it had not offered; none is opened.
            with pytest.raises(Refused) as caught:
                async with peer.connect(f"{url}/unoffered", Options(subprotocols=["a"])):
                    pytest.fail("it was refused")
            assert caught.value.code == 1006
            async with peer.connect(
                f"{url}/second", Options(subprotocols=["first", "second"])
            ) as end:
                assert end.subprotocol == "second"
        if peer.shows_refusal and peer.shows_refusal_body:
            assert caught.value.body == b"not here\xff"


class Http2Client:
    """One WebSocket connection by extended CONNECT (RFC 8441), without TLS."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self._codec = make_codec("client")
        self._id = 1
        self.headers: dict[str, str] = {}

    async def connect(self, target: str, subprotocols: str = "a, b") -> None:
        self._http.initiate_connection()
        await self._flush()
        while not self._http.remote_settings.enable_connect_protocol:
            await self._read()
        self._http.send_headers(
            self._id,
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", target),
                (":authority", "localhost"),
                ("sec-websocket-version", "13"),
                ("sec-websocket-protocol", subprotocols),
                ("x-a", "1"),
            ],
        )
        await self._flush()
        while not self.headers:
            await self._read()

    async def send(self, event: Event) -> None:
        self._http.send_data(self._id, self._codec.encode(event))
        await self._flush()

    async def receive(self) -> Event:
        while not (events := self._codec.next_events(1)[0]):
            await self._read()
        ((event, _),) = events
        return event

    async def _read(self) -> None:
        for event in self._http.receive_data(await self._stream.receive()):
            if isinstance(event, h2.events.ResponseReceived):
                self.headers = {str(name): str(value) for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                assert event.flow_controlled_length is not None
                assert event.data is not None
                self._http.acknowledge_received_data(event.flow_controlled_length, self._id)
                self._codec.receive_data(event.data)
        await self._flush()

    async def _flush(self) -> None:
        await self._stream.send(self._http.data_to_send())


@pytest.mark.parametrize("server", HYPERCORN, ids=lambda server: server.name)
async def test_over_http2(server: AsgiServer, fleet: Fleet) -> None:
    connect = partial(anyio.connect_tcp, "127.0.0.1", fleet.port(server))
    names = Client(connect)
    async with await connect() as stream:
        client = Http2Client(stream)
        await client.connect(names.target("/somewhere"))
        assert client.headers[":status"] == "200"
        assert client.headers["sec-websocket-protocol"] == "a"
        event = await client.receive()
        assert isinstance(event, TextMessage)
        assert '"http_version":"2"' in event.data
        assert '"fields":[["x-a","1"]]' in event.data
        assert '"host":"localhost"' in event.data
        await client.send(CloseConnection(1000, "over"))
        assert await client.receive() == CloseConnection(1000, "over")
    assert (await names.record())["code"] == 1006

    async with await connect() as stream:
        client = Http2Client(stream)
        await client.connect("/echo")
        await client.send(BytesMessage(b"\x00" * 1000))
        assert await client.receive() == BytesMessage(b"\x00" * 1000)


@pytest.mark.parametrize("server", HYPERCORN, ids=lambda server: server.name)
async def test_decisions_over_http2(server: AsgiServer, fleet: Fleet) -> None:
    connect = partial(anyio.connect_tcp, "127.0.0.1", fleet.port(server))
    for path, status, fields in (
        ("/false", "403", {}),
        ("/reject-connection", "401", {"x-why": "because"}),
        ("/reject-bytes", "404", {"x-why": "because"}),
        ("/reject-pieces", "503", {"x-why": "because"}),
        ("/unoffered", "500", {}),
        ("/raises", "500", {}),
        ("/second", "200", {"sec-websocket-protocol": "second"}),
        ("/fields", "200", {"x-why": "because"}),
    ):
        async with await connect() as stream:
            client = Http2Client(stream)
            await client.connect(path, "first, second")
            assert client.headers[":status"] == status, path
            assert fields.items() <= client.headers.items(), path


@pytest.mark.parametrize("server", HYPERCORN, ids=lambda server: server.name)
async def test_ends_over_http2(server: AsgiServer, fleet: Fleet) -> None:
    connect = partial(anyio.connect_tcp, "127.0.0.1", fleet.port(server))
    for path, end in (
        ("/closes", CloseConnection(4002, "bye")),
        ("/crashes", CloseConnection(1011, "")),
    ):
        async with await connect() as stream:
            client = Http2Client(stream)
            await client.connect(path)
            came = await client.receive()
            assert isinstance(came, CloseConnection)
            assert (came.code, came.reason or "") == (end.code, end.reason)
    names = Client(connect)
    async with await connect() as stream:
        client = Http2Client(stream)
        await client.connect(names.target("/lets_through"))
    noted = await names.record()
    assert (noted["code"], noted["raised"]) == (1006, "ConnectionClosedError")
