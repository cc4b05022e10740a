"""Messages, fragments and pings between ours and others."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import anyio
import pytest

from asyncwebsockets.events import BytesMessage, Ping, TextMessage

from .roster import links

if TYPE_CHECKING:
    from .link import Link
    from .peer import Data

pytestmark = pytest.mark.anyio

# The sizes on both sides of where a frame's header grows (RFC 6455 section 5.2).
SIZES = [1, 125, 126, 127, 65535, 65536]

# Text whose characters take one to four bytes in UTF-8.
ALPHABET = "aß€😀"


def text(size: int) -> str:
    return (ALPHABET * (size // 4 + 1))[:size]


def message(data: Data) -> TextMessage | BytesMessage:
    return TextMessage(data) if isinstance(data, str) else BytesMessage(data)


@links()
async def test_messages_of_all_sizes(link: Link) -> None:
    messages: list[Data] = ["", b"", "\0", text(3)]
    messages += [text(size) for size in SIZES]
    messages += [random.Random(size).randbytes(size) for size in SIZES]
    async with link.connection() as connection:
        for data in messages:
            # The larger ones may need a receiver before they are sent whole.
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connection.ws.send, data)
                assert await connection.far.receive() == data
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connection.far.send, data)
                assert await connection.ws.receive() == message(data)


@links()
async def test_large_messages_in_both_directions_at_once(link: Link) -> None:
    ours: list[Data] = [text(2**20), random.Random(1).randbytes(3 * 2**20 + 1)]
    theirs: list[Data] = [random.Random(2).randbytes(3 * 2**20 + 1), text(2**20)]
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far

        async def send_ours() -> None:
            for data in ours:
                await ws.send(data)

        async def send_theirs() -> None:
            for data in theirs:
                await far.send(data)

        async def receive_theirs() -> None:
            for data in theirs:
                assert await ws.receive() == message(data)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_theirs)
            tasks.start_soon(send_ours)
            tasks.start_soon(receive_theirs)
            for data in ours:
                assert await far.receive() == data


@links()
async def test_many_messages_keep_their_order(link: Link) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far

        async def send_ours() -> None:
            for number in range(50):
                await ws.send(f"ours {number}")

        async def send_theirs() -> None:
            for number in range(50):
                await far.send(f"theirs {number}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_ours)
            tasks.start_soon(send_theirs)
            for number in range(50):
                assert await ws.receive_text() == f"theirs {number}"
        for number in range(50):
            assert await far.receive() == f"ours {number}"


@links()
@pytest.mark.parametrize(
    "pieces",
    [
        # Pieces of a text are cut between characters, not between bytes.
        pytest.param(["a", "ß€", "😀"], id="text"),
        pytest.param([b"\x00", b"\xff" * 70000, b"\x01"], id="binary"),
        pytest.param(["", "b", ""], id="empty"),
    ],
)
async def test_fragments_sent(link: Link, pieces: list[Data]) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far
        fragments: list[Data] = []

        async def receive() -> None:
            fragments.extend(await far.receive_fragments())

        async with anyio.create_task_group() as tasks:
            # Some answer pings only while they receive.
            tasks.start_soon(receive)
            for piece in pieces[:-1]:
                await ws.send(piece, final=False)
            # It stands between the fragments, as it may (RFC 6455 section 5.4).
            await ws.ping(b"between")
            await ws.send(pieces[-1])
        assert type(pieces[0])().join(fragments) == type(pieces[0])().join(pieces)  # type: ignore[arg-type]
        if link.peer.shows_fragments:
            assert [p for p in fragments if p] == [p for p in pieces if p]


@links(lambda peer: peer.sends_fragments)
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(["a", "ß€", "😀"], id="text"),
        pytest.param([b"\x00", b"\xff" * 70000, b"\x01"], id="binary"),
    ],
)
async def test_fragments_received(link: Link, pieces: list[Data]) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far
        whole = type(pieces[0])().join(pieces)  # type: ignore[arg-type]

        async def send() -> None:
            await far.send_fragments(pieces)
            await far.send_fragments(pieces)
            await far.send("the next message")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            assert await ws.receive() == message(whole)
            async with ws.receive_stream() as stream:
                received = [piece async for piece in stream]
        assert type(pieces[0])().join(received) == whole  # type: ignore[arg-type]
        # They came as fragments: no piece goes over the end of one.
        assert received[0] == pieces[0]
        assert received[-1] == pieces[-1]
        assert await ws.receive_text() == "the next message"


@links()
async def test_our_ping_is_answered(link: Link) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far
        received: list[Data] = []

        async def receive() -> None:
            received.append(await far.receive())

        async with anyio.create_task_group() as tasks:
            # Some answer only while they receive.
            tasks.start_soon(receive)
            for payload in (None, b"", b"x" * 125):
                trip = await ws.ping(payload)
                assert trip >= 0
                assert ws.latency == trip
            await ws.send("after the pings")
        assert received == ["after the pings"]
        if link.peer.shows_pings:
            assert far.pings[1:] == [b"", b"x" * 125]


@links(lambda peer: peer.sends_pings)
async def test_their_ping_is_answered_while_we_do_not_receive(link: Link) -> None:
    async with link.connection() as connection:
        await connection.far.ping(b"one")
        await connection.far.ping(b"x" * 125)
        assert await connection.ws.receive() == Ping(b"one")
        assert await connection.ws.receive() == Ping(b"x" * 125)
