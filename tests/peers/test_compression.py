"""permessage-deflate between ours and others (RFC 7692)."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from asyncwebsockets import (
    ConnectionClosedError,
    Deflate,
    InvalidHandshake,
    Settings,
    open_websocket,
)
from asyncwebsockets.events import BytesMessage, TextMessage

from .link import Link
from .peer import Listening, Options
from .roster import links
from .with_websockets import PicowsWebsockets

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from anyio.abc import ByteStream

    from asyncwebsockets import Server

    from .link import Connection
    from .peer import Data, Peer

pytestmark = pytest.mark.anyio

# Even the smallest message is compressed.
CLIENTS = [
    pytest.param(Deflate(threshold=0), id="defaults"),
    pytest.param(Deflate(client_no_context_takeover=True, threshold=0), id="client-alone"),
]
SERVERS = [
    pytest.param(Deflate(server_no_context_takeover=True, threshold=0), id="server-alone"),
    pytest.param(
        Deflate(server_max_window_bits=9, client_max_window_bits=12, threshold=0), id="windows"
    ),
    pytest.param(
        Deflate(
            server_max_window_bits=10,
            client_max_window_bits=9,
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            threshold=0,
        ),
        id="all",
    ),
]


def confirms(peer: type[Peer]) -> bool:
    """Whether its server does what a client asks it for, and says so."""
    # That of picows answers all offers with no parameters.
    return peer is not PicowsWebsockets


def repeating() -> bytes:
    """Return what repeats itself at distances within and beyond each window's size."""
    source = random.Random(1)
    piece = source.randbytes(200)
    return piece + b"".join(
        source.randbytes(distance - len(piece)) + piece for distance in (300, 700, 5000, 20000)
    )


# What is sent again is a reference to the message before, where the context is kept.
MESSAGES: list[Data] = ["", b"", "a", "größer " * 100, "größer " * 100, repeating()]
MESSAGES += [random.Random(2).randbytes(1000), repeating()]

LARGE: list[Data] = ["größer 😀" * (2**20 // 14), random.Random(3).randbytes(2**20)]

PIECES: list[Sequence[Data]] = [
    ["größer " * 20, "größer " * 20, "größer"],
    [repeating(), b"\x00", repeating()],
]


def check_answer(link: Link, deflate: Deflate, connection: Connection) -> None:
    """Check that the server's answer is just what both are set to."""
    name, *items = (connection.ws.response.header("Sec-WebSocket-Extensions") or "").split(";")
    assert name == "permessage-deflate"
    answer = {key: value for key, _, value in (item.strip().partition("=") for item in items)}
    for side in ("server", "client"):
        alone, bits = f"{side}_no_context_takeover", f"{side}_max_window_bits"
        # A server need not repeat what a client says of itself.
        said = side == "server" or link.role == "client"
        if said or alone in answer:
            assert (alone in answer) == getattr(deflate, alone)
        if said or bits in answer:
            assert int(answer.get(bits, 15)) == getattr(deflate, bits)


async def exchange(connection: Connection, data: Data) -> None:
    """Send a message in each direction."""
    ws, far = connection.ws, connection.far
    # The larger ones may need a receiver before they are sent whole.
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ws.send, data)
        assert await far.receive() == data
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(far.send, data)
        event = await ws.receive()
        assert isinstance(event, (TextMessage, BytesMessage))
        assert event.data == data


async def check(link: Link, deflate: Deflate) -> None:
    settings, options = Settings(compression=deflate), Options(compression=deflate)
    async with link.connection(options, settings=settings) as connection:
        check_answer(link, deflate, connection)
        for data in MESSAGES:
            await exchange(connection, data)
        for pieces in PIECES:
            await check_fragments(link, connection, pieces)
        # The contexts are still the same on both sides.
        await exchange(connection, MESSAGES[-1])


async def check_fragments(link: Link, connection: Connection, pieces: Sequence[Data]) -> None:
    ws, far = connection.ws, connection.far
    whole = type(pieces[0])().join(pieces)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:

        async def send() -> None:
            for piece in pieces:
                await ws.send(piece, final=False)
            await ws.send(type(pieces[0])())

        tasks.start_soon(send)
        assert await far.receive() == whole
    if link.peer.sends_fragments:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(far.send_fragments, pieces)
            event = await ws.receive()
            assert isinstance(event, (TextMessage, BytesMessage))
            assert event.data == whole


@links(lambda peer: peer.compresses, role="client")
@pytest.mark.parametrize("deflate", CLIENTS + SERVERS)
async def test_our_server_agrees(link: Link, deflate: Deflate) -> None:
    await check(link, deflate)


@links(lambda peer: peer.compresses, role="server")
@pytest.mark.parametrize("deflate", CLIENTS)
async def test_the_peers_server_agrees(link: Link, deflate: Deflate) -> None:
    await check(link, deflate)


@links(lambda peer: peer.compresses and confirms(peer), role="server")
@pytest.mark.parametrize("deflate", SERVERS)
async def test_the_peers_server_confirms(link: Link, deflate: Deflate) -> None:
    await check(link, deflate)


@links(lambda peer: peer.compresses and not confirms(peer), role="server")
async def test_a_server_that_does_not_confirm_is_refused(link: Link) -> None:
    deflate = Deflate(server_no_context_takeover=True)
    async with link.peer_serves(Options(compression=deflate)) as listening:
        with pytest.raises(InvalidHandshake):
            async with open_websocket(listening.url, settings=Settings(compression=deflate)):
                pass


@links(lambda peer: peer.compresses)
async def test_large_messages(link: Link) -> None:
    deflate = Deflate()
    settings, options = Settings(compression=deflate), Options(compression=deflate)
    async with link.connection(options, settings=settings) as connection:
        check_answer(link, deflate, connection)
        for data in LARGE:
            await exchange(connection, data)


class Relayed(Link):
    """A link that counts the bytes which go either way."""

    def __init__(self, link: Link) -> None:
        super().__init__(link.peer, link.role, link.portal, link.tls)
        self.carried = {"to server": 0, "to client": 0}

    @asynccontextmanager
    async def listening(
        self, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[tuple[Server, str], None]:
        async with super().listening(*args, **kwargs) as (server, url), self._relay(url) as relay:
            yield server, relay

    @asynccontextmanager
    async def peer_serves(self, options: Options | None = None) -> AsyncGenerator[Listening, None]:
        async with super().peer_serves(options) as listening, self._relay(listening.url) as url:
            listening.url = url
            yield listening

    @asynccontextmanager
    async def _relay(self, url: str) -> AsyncGenerator[str, None]:
        base, _, port = url.rpartition(":")

        async def pump(source: ByteStream, sink: ByteStream, direction: str) -> None:
            with suppress(anyio.BrokenResourceError):
                async for data in source:
                    self.carried[direction] += len(data)
                    await sink.send(data)
                await sink.send_eof()

        async def relay(client: ByteStream) -> None:
            async with client, await anyio.connect_tcp("127.0.0.1", int(port)) as server:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(pump, client, server, "to server")
                    tasks.start_soon(pump, server, client, "to client")

        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, relay)
                yield f"{base}:{listener.extra(SocketAttribute.local_port)}"
                tasks.cancel_scope.cancel()


@links(lambda peer: peer.compresses)
async def test_what_goes_over_the_wire_is_compressed(link: Link) -> None:
    relayed = Relayed(link)
    settings, options = Settings(compression=Deflate()), Options(compression=Deflate())
    async with relayed.connection(options, settings=settings) as connection:
        await exchange(connection, "größer " * 10_000)
    assert 100 < min(relayed.carried.values())
    assert max(relayed.carried.values()) < 5_000


@links(lambda peer: peer.compresses)
async def test_the_peer_sends_what_inflates_to_too_much(link: Link) -> None:
    settings = Settings(compression=Deflate(), max_message_size=2**18)
    async with link.connection(Options(compression=Deflate()), settings=settings) as connection:
        ws, far = connection.ws, connection.far
        data = "x" * 2**18
        await exchange(connection, data)
        await far.send(data + "x")
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1009


@links(lambda peer: peer.compresses)
async def test_one_side_alone_does_not_compress(link: Link) -> None:
    async with link.connection(Options(compression=Deflate())) as connection:
        assert connection.ws.response.header("Sec-WebSocket-Extensions") is None
        await exchange(connection, repeating())
