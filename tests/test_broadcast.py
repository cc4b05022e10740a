"""One message to many connections."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asgi_bridge import WebsocketApp, open_websocket_app
from asyncwebsockets import (
    ConnectionClosedError,
    ConnectionState,
    Deflate,
    Settings,
    Websocket,
    broadcast,
    create_websocket_server,
    open_websocket_client,
)
from asyncwebsockets._shared import Shared, kin_of
from asyncwebsockets.codec import IMPLEMENTATION, make_codec
from asyncwebsockets.deflate import PerMessageDeflate

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Pairs

pytestmark = pytest.mark.anyio

ALONE = Deflate(server_no_context_takeover=True, client_no_context_takeover=True)
QUIET = Settings(ping_interval=None)
# A client with this reads next to nothing that it is not asked to receive.
SHORT_SIGHTED = Settings(ping_interval=None, max_read_ahead=1)
BIG = 256 * 1024


def numbered(number: int) -> bytes:
    return b"%8d" % number + bytes(BIG)


def number_of(data: bytes) -> int:
    assert len(data) == BIG + 8
    return int(data[:8])


@pytest.mark.parametrize("data", ["Grüße", b"\x00\xff", "", bytearray(b"abc"), memoryview(b"xyz")])
async def test_everyone_gets_it(pairs: Pairs, codec: Any, data: Any) -> None:
    settings = [
        QUIET,
        QUIET,
        Settings(ping_interval=None, compression=Deflate(threshold=0)),
        Settings(ping_interval=None, compression=ALONE),
        Settings(ping_interval=None, compression=ALONE),
    ]
    async with AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(pairs.connect(chosen)) for chosen in settings]
        for here in (0, 1):
            await broadcast([pair[1 - here] for pair in ends], data)
            for pair in ends:
                await pair[1 - here].send("behind")
            for pair in ends:
                event: Any = await pair[here].receive()
                assert event.data == (data if isinstance(data, str) else bytes(data))
                assert await pair[here].receive_text() == "behind"


async def test_the_oldest_messages_for_who_does_not_read_are_dropped(
    pairs: Pairs, codec: Any
) -> None:
    async with (
        pairs.connect(client=SHORT_SIGHTED, server=QUIET) as (slow_client, slow),
        pairs.connect(QUIET) as (quick_client, quick),
    ):
        got: list[int] = []
        count = 64
        for number in range(count):
            await broadcast([slow, quick], numbered(number), when_slow="drop", max_held=4 * BIG)
            assert number_of(await quick_client.receive_bytes()) == number
        while not got or got[-1] < count - 1:
            got.append(number_of(await slow_client.receive_bytes()))
        assert got[0] == 0
        assert got == sorted(set(got))
        assert len(got) < count
        # What was held last was not dropped.
        assert got[-3:] == [count - 3, count - 2, count - 1]
        await broadcast([slow, quick], "in the end")
        assert await slow_client.receive_text() == "in the end"


async def test_who_does_not_read_is_disconnected(pairs: Pairs, codec: Any) -> None:
    impatient = Settings(ping_interval=None, close_timeout=0.1)
    async with (
        pairs.connect(client=SHORT_SIGHTED, server=impatient) as (_, slow),
        pairs.connect(QUIET) as (quick_client, quick),
    ):
        number = 0
        while slow.state is ConnectionState.OPEN:
            await broadcast([slow, quick], numbered(number), max_held=BIG)
            assert number_of(await quick_client.receive_bytes()) == number
            number += 1
        with pytest.raises(ConnectionClosedError) as caught:
            await slow.receive()
        assert caught.value.code == 1008
        assert caught.value.reason == f"more than {BIG} bytes wait for the peer to read"
        # It is left out from now on.
        await broadcast([slow, quick], numbered(number))
        assert number_of(await quick_client.receive_bytes()) == number


async def test_everyone_is_waited_for(pairs: Pairs, codec: Any) -> None:
    count = 64
    sent: list[int] = []
    async with (
        pairs.connect(client=SHORT_SIGHTED, server=QUIET) as (slow_client, slow),
        pairs.connect(QUIET) as (quick_client, quick),
        anyio.create_task_group() as task_group,
    ):

        async def publish() -> None:
            for number in range(count):
                await broadcast([slow, quick], numbered(number), when_slow="wait")
                sent.append(number)

        got: list[int] = []

        async def read() -> None:
            while len(got) < count:
                got.append(number_of(await quick_client.receive_bytes()))

        task_group.start_soon(publish)
        task_group.start_soon(read)
        for _ in range(1000):
            await anyio.lowlevel.checkpoint()
        assert len(sent) < count
        for expected in range(count):
            assert number_of(await slow_client.receive_bytes()) == expected
        await until(lambda: len(sent) == len(got) == count)
        assert got == list(range(count))


async def test_it_does_not_come_between_the_fragments_of_a_message(
    pairs: Pairs, codec: Any
) -> None:
    async with pairs.connect(QUIET) as (client, server), anyio.create_task_group() as task_group:
        await server.send("frag", final=False)
        task_group.start_soon(broadcast, [server], "for all")
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        await server.send("ments")
        assert await client.receive_text() == "fragments"
        assert await client.receive_text() == "for all"


async def test_a_pong_is_not_dropped(pairs: Pairs) -> None:
    async with (
        pairs.connect(client=SHORT_SIGHTED, server=QUIET) as (client, server),
        anyio.create_task_group() as task_group,
    ):
        count = 64
        for number in range(count // 2):
            await broadcast([server], numbered(number), when_slow="drop", max_held=2 * BIG)
        round_trips: list[float] = []

        async def ping() -> None:
            round_trips.append(await client.ping())

        task_group.start_soon(ping)
        for number in range(count // 2, count):
            await broadcast([server], numbered(number), when_slow="drop", max_held=2 * BIG)
        while number_of(await client.receive_bytes()) < count - 1:
            await anyio.lowlevel.checkpoint()
        await until(lambda: bool(round_trips))


@pytest.mark.parametrize("pairs", ["memory"], indirect=True)
@pytest.mark.parametrize(
    ("data", "options", "error", "match"),
    [
        (1, {}, TypeError, "expected str, bytes, bytearray or memoryview to send, got int"),
        ("\ud800", {}, ValueError, "surrogates not allowed"),
        ("", {"when_slow": "sleep"}, ValueError, "expected when_slow to be one of .*'sleep'"),
        ("", {"max_held": -1}, ValueError, "expected max_held of 0 or more, got -1"),
    ],
)
async def test_what_cannot_be_sent_is_an_error(
    pairs: Pairs, data: Any, options: Any, error: type[Exception], match: str
) -> None:
    async with pairs.connect(QUIET) as (client, server):
        with pytest.raises(error, match=match):
            await broadcast([server], data, **options)
        await broadcast([server], "usable")
        assert await client.receive_text() == "usable"


async def test_connections_without_a_scope_are_waited_for(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    opened: list[Websocket] = []

    async def serve() -> None:
        opened.append(await create_websocket_server(far))

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(serve)
        async with open_websocket_client(near, ("localhost", 80), "/") as client:
            await until(lambda: bool(opened))
            await broadcast(opened, "hello")
            assert await client.receive_text() == "hello"
            task_group.start_soon(opened[0].close)


async def test_connections_in_an_asgi_server_are_waited_for() -> None:
    people: set[Websocket] = set()

    async def handler(websocket: Websocket) -> None:
        people.add(websocket)
        await websocket.wait_closed()

    app = WebsocketApp(handler)
    async with open_websocket_app(app, "/") as one, open_websocket_app(app, "/") as other:
        await until(lambda: len(people) == 2)
        await broadcast(people, "hello")
        assert await one.receive_text() == "hello"
        assert await other.receive_text() == "hello"


def agreed(options: Deflate) -> PerMessageDeflate:
    """An extension on the server's side as it is after the handshake."""
    deflate = PerMessageDeflate(options)
    offer = f"permessage-deflate; {PerMessageDeflate(options).offer()}"
    assert deflate.accept(offer) is not None
    return deflate


@pytest.mark.parametrize("implementation", sorted({"pure", IMPLEMENTATION}))
def test_a_frame_is_made_once_for_all_whose_frames_are_alike(implementation: Any) -> None:
    message = Shared("hello " * 100)
    frames = []
    for extensions in ([], [], [agreed(ALONE)], [agreed(ALONE)]):
        codec = make_codec("server", extensions, implementation)
        kin = kin_of("server", extensions)
        assert kin is not None
        frames.append(message.frame(codec, kin))
    assert frames[0] is frames[1]
    assert frames[2] is frames[3]
    assert frames[0] != frames[2]
    assert kin_of("client", []) is None
    assert kin_of("server", [agreed(Deflate())]) is None
    other = Deflate(server_no_context_takeover=True, level=1)
    assert kin_of("server", [agreed(other)]) != kin_of("server", [agreed(ALONE)])
