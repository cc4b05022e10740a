"""What a hostile peer can cost: each attack with a bound on memory and work, and a clear end.

docs/limits.md has these bounds in a table. Those in time are in test_timers.py.
"""

from __future__ import annotations

import gc
import socket
import time
import tracemalloc
import zlib
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import (
    ConnectionClosedError,
    Deflate,
    InvalidHandshake,
    Server,
    Settings,
    Websocket,
    open_websocket_client,
    open_websocket_server,
    serve,
)
from asyncwebsockets.codec import CodecError
from asyncwebsockets.deflate import Inflater
from asyncwebsockets.events import Ping
from asyncwebsockets.handshake import ServerHandshake

from .conftest import CODECS, cut, memory_pair
from .frames import REQUEST, close_payload, frame
from .test_bad_input import Raw, raw_client

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from .conftest import Pairs

# What a tracer takes is not the library's.
pytestmark = pytest.mark.no_cover

KIB = 1024
MIB = 1024 * KIB
_OFFER = {"Sec_WebSocket_Extensions": "permessage-deflate"}

# What is asked of time: eight times as much of an attack takes less than 24 times as long.
# With a quadratic algorithm it would be 64 times.
_MORE, _LONGER = 8, 24


@pytest.fixture(params=["memory"])
def pairs(pairs: Pairs) -> Pairs:
    """Pairs in memory: what is measured is the library's, not the kernel's."""
    return pairs


@contextmanager
def taking_at_most(size: int) -> Iterator[None]:
    """Expect no more memory to be taken in the block than this, at any moment."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken <= size, f"expected at most {size} bytes, got {taken}"


def expect_linear(work: Callable[[int], object], size: int) -> None:
    """Expect more of an attack to take no more than in proportion."""

    def seconds(amount: int) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            work(amount)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(size * _MORE) < _LONGER * max(seconds(size), 1e-4)


async def expect_close(raw: Raw, code: int) -> None:
    while (found := await raw.frame())[0] != 0x88:
        pass
    assert found[1][:2] == close_payload(code)


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, wbits=-15)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


# Handshakes


def feed(data: bytes, piece: int, limit: int | None = None) -> int | None:
    """Return the status that refuses a request which comes in pieces, None if nothing does."""
    handshake = ServerHandshake(max_size=limit)
    try:
        for start in range(0, len(data), piece):
            if handshake.receive_data(data[start : start + piece]) is not None:
                break
    except InvalidHandshake as exc:
        return exc.status
    return None


_BOMBS: list[Any] = [
    pytest.param(lambda size: REQUEST[:-2] + b"a:\r\n" * (size // 4) + b"\r\n", id="many fields"),
    pytest.param(lambda size: REQUEST[:-2] + b"a: " + b"b" * size + b"\r\n\r\n", id="long value"),
    pytest.param(lambda size: REQUEST[:-2] + b"a" * size + b": b\r\n\r\n", id="long name"),
    pytest.param(lambda size: REQUEST[:-2] + b"a:" + b" " * size + b"b\r\n\r\n", id="spaces"),
    pytest.param(lambda size: REQUEST[:-2] + b"a: b\r\n" + b" c\r\n" * (size // 4), id="folded"),
    pytest.param(lambda size: REQUEST.replace(b"/path", b"/" + b"a" * size), id="long target"),
    pytest.param(lambda size: REQUEST.replace(b"GET", b"G" * size), id="long method"),
    pytest.param(
        lambda size: (
            REQUEST[:-2] + b"Sec-WebSocket-Extensions: " + b"a;b," * (size // 4) + b"\r\n\r\n"
        ),
        id="many offers",
    ),
    pytest.param(
        lambda size: (
            REQUEST[:-2] + b'Sec-WebSocket-Extensions: a; b="' + b'\\"' * (size // 2) + b"\r\n\r\n"
        ),
        id="open quote",
    ),
    pytest.param(
        lambda size: (
            REQUEST[:-2]
            + b"Sec-WebSocket-Protocol: "
            + b",".join(b"%d" % number for number in range(size // 6))
            + b"\r\n\r\n"
        ),
        id="many subprotocols",
    ),
]


@pytest.mark.parametrize("bomb", _BOMBS)
def test_a_header_bomb_is_bounded(bomb: Callable[[int], bytes]) -> None:
    # What one read of a socket brings at most, and less.
    over, under = bomb(MIB), bomb(60 * KIB)
    for piece in (64 * KIB, 4 * KIB):
        with taking_at_most(8 * MIB):
            assert feed(over, piece, 64 * KIB) == 431
        with taking_at_most(8 * MIB):
            assert feed(under, piece, 64 * KIB) in (None, 400, 405, 431)


@pytest.mark.parametrize("bomb", _BOMBS)
@pytest.mark.parametrize("piece", [MIB, 512])
def test_a_header_bomb_takes_time_in_proportion(bomb: Callable[[int], bytes], piece: int) -> None:
    expect_linear(lambda size: feed(bomb(size), piece), 8 * KIB)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10_000,
        b"HTTP/1.1 101 Switching Protocols\r\na: " + b"b" * MIB,
        b"HTTP/1.1 101 Switching Protocols\r\n" + b"a:\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 403 Forbidden\r\n" + b"a:\r\n" * 257 + b"\r\n",
    ],
    ids=["endless 1xx", "long value", "many fields", "many fields of a rejection"],
)
async def test_a_servers_header_bomb_is_bounded(answer: bytes) -> None:
    near, far = memory_pair(1000)

    async def reply() -> None:
        await far.receive()
        with suppress(anyio.BrokenResourceError):
            for start in range(0, len(answer), 64 * KIB):
                await far.send(answer[start : start + 64 * KIB])

    async with anyio.create_task_group() as tg:
        tg.start_soon(reply)
        with taking_at_most(8 * MIB), pytest.raises(InvalidHandshake):
            async with open_websocket_client(near, "h", "/"):
                pytest.fail("a bomb was taken for an answer")


async def idle(ws: Websocket) -> None:
    await ws.wait_closed()


@pytest.mark.anyio
@pytest.mark.parametrize("sent", [b"", REQUEST[:60], REQUEST[:-2] + b"a: " + b"b" * 60 * KIB])
async def test_handshakes_that_do_not_come_to_an_end_are_few(sent: bytes) -> None:
    """What each takes is little; who comes when there are too many is told 503."""
    most = 20
    each = 32 * KIB + 2 * len(sent)
    async with anyio.create_task_group() as tg:
        settings = Settings(max_handshakes=most)
        server: Server = await tg.start(partial(serve, idle, "127.0.0.1", 0, settings=settings))
        with ExitStack() as stack:

            async def connect() -> None:
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                sock.sendall(sent)
                await anyio.wait_all_tasks_blocked()

            # The first brings about what is there only once.
            await connect()
            with taking_at_most((most - 1) * each):
                for _ in range(most - 1):
                    await connect()
            async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
                await stream.send(REQUEST)
                assert (await stream.receive()).startswith(b"HTTP/1.1 503 ")
        tg.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_tls_handshake_that_does_not_come_is_cut(server_tls: ssl.SSLContext) -> None:
    async with anyio.create_task_group() as tg:
        settings = Settings(open_timeout=0.1)
        server: Server = await tg.start(
            partial(serve, idle, "127.0.0.1", 0, ssl=server_tls, settings=settings)
        )
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                while True:
                    await stream.receive()
        tg.cancel_scope.cancel()


@pytest.mark.anyio
async def test_bytes_behind_the_handshake_are_bounded_while_the_filter_runs() -> None:
    near, far = memory_pair(0)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        await near.send(REQUEST)
        while True:
            await near.send(bytes(4 * KIB))
            sent += 1

    async def slow(_: object) -> bool:
        await anyio.sleep_forever()
        return True

    with taking_at_most(512 * KIB):
        async with anyio.create_task_group() as tg:
            tg.start_soon(flood)
            tg.start_soon(partial(open_websocket_server, far, slow)().__aenter__)
            for _ in range(100):
                await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
    assert sent <= 17


# Frames


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize("opcode", [1, 2])
async def test_a_frame_that_comes_byte_by_byte_takes_its_size(pairs: Pairs, opcode: int) -> None:
    size = 3000
    data = frame(opcode, b"x" * size, masked=True)
    async with raw_client(pairs) as (raw, ws):
        with taking_at_most(256 * KIB):
            async with anyio.create_task_group() as tg:
                tg.start_soon(ws.receive)
                for start in range(len(data)):
                    await raw.send(data[start : start + 1])


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize("piece", [1, 7])
def test_a_frame_in_pieces_takes_time_in_proportion(made: Any, piece: int) -> None:
    def work(size: int) -> None:
        codec = made(client=False)
        data = frame(1, b"x" * size, masked=True)
        for start in range(0, len(data), piece):
            codec.receive_data(data[start : start + piece])
            while codec.next_events()[0]:
                pass

    expect_linear(work, 2000)


@pytest.mark.parametrize("made", CODECS)
def test_many_small_frames_at_once_take_time_in_proportion(made: Any) -> None:
    def work(count: int) -> None:
        codec = made(client=False)
        codec.receive_data(
            frame(1, masked=True) * count
            + frame(9, b"ping", masked=True) * count
            + frame(2, fin=False, masked=True)
            + frame(0, b"x", fin=False, masked=True) * count
        )
        while codec.next_events()[0]:
            pass

    expect_linear(work, 500)


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
async def test_endless_fragments_end_at_the_limit(pairs: Pairs) -> None:
    fragments = frame(0, b"x" * 10, fin=False, masked=True) * 500
    async with raw_client(pairs, Settings(max_message_size=100_000)) as (raw, ws):
        with taking_at_most(MIB):
            async with anyio.create_task_group() as tg:

                async def flood() -> None:
                    await raw.send(frame(2, fin=False, masked=True))
                    with suppress(anyio.BrokenResourceError):
                        for _ in range(100):
                            await raw.send(fragments)

                tg.start_soon(flood)
                with pytest.raises(ConnectionClosedError) as caught:
                    await ws.receive()
                assert caught.value.code == 1009
                await expect_close(raw, 1009)
                tg.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
async def test_endless_empty_fragments_take_nothing(pairs: Pairs) -> None:
    fragments = frame(0, fin=False, masked=True) * 500
    async with raw_client(pairs) as (raw, ws):
        await raw.send(frame(2, fin=False, masked=True))
        with taking_at_most(MIB):
            async with anyio.create_task_group() as tg:
                tg.start_soon(ws.receive)
                for _ in range(40):
                    await raw.send(fragments)
                await raw.send(frame(0, masked=True))


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
async def test_a_flood_of_empty_messages_stalls_at_the_read_ahead(pairs: Pairs) -> None:
    """64 KiB of them count as 1.3 MiB: 128 bytes each, whatever they are."""
    sent = 0
    async with raw_client(pairs, Settings(ping_interval=None)) as (raw, ws):
        with taking_at_most(MIB):
            async with anyio.create_task_group() as tg:

                async def flood() -> None:
                    nonlocal sent
                    while True:
                        await raw.send(frame(1, masked=True) * 1000)
                        sent += 1000

                tg.start_soon(flood)
                for _ in range(5):
                    await anyio.wait_all_tasks_blocked()
                    await anyio.sleep(0.1)
                tg.cancel_scope.cancel()
        # As many as fit in the pipe, and in 256 KiB.
        assert sent <= 17_000 + 2048 + 1000
        for _ in range(sent):
            assert await ws.receive_text() == ""


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
async def test_a_ping_flood_of_a_peer_that_does_not_read_is_bounded(pairs: Pairs) -> None:
    pings = frame(9, bytes(125), masked=True) * 400
    async with raw_client(pairs, Settings(ping_interval=None)) as (raw, ws):
        with taking_at_most(MIB):
            async with anyio.create_task_group() as tg:
                tg.start_soon(ws.wait_closed)
                for _ in range(50):
                    await raw.send(pings)
                for _ in range(10):
                    await anyio.wait_all_tasks_blocked()
                tg.cancel_scope.cancel()
        events = 0
        await raw.send(frame(1, b"end", masked=True))
        while isinstance(await ws.receive(), Ping):
            events += 1
        assert events <= 32
        # RFC 6455 section 5.5.3: the latest is answered at least.
        assert await raw.frame() == (0x8A, bytes(125))


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
async def test_a_reader_that_never_reads_makes_senders_wait(pairs: Pairs) -> None:
    sent = 0
    async with raw_client(pairs, Settings(ping_interval=None)) as (_, ws):
        message = bytes(64 * KIB)
        with taking_at_most(3 * MIB):
            async with anyio.create_task_group() as tg:

                async def push() -> None:
                    nonlocal sent
                    while True:
                        await ws.send(message)
                        sent += 1

                for _ in range(10):
                    tg.start_soon(push)
                for _ in range(50):
                    await anyio.wait_all_tasks_blocked()
                tg.cancel_scope.cancel()
        # 16 in the pipe, and what is on its way.
        assert sent <= 20


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize(
    ("size", "code"), [(2**62, 1009), (2**63 - 1, 1009), (2**63, 1002), (16 * MIB + 1, 1009)]
)
@pytest.mark.parametrize("fragment", [False, True])
async def test_a_length_with_nothing_behind_it_takes_nothing(
    pairs: Pairs, size: int, code: int, fragment: bool
) -> None:
    length = b"\x7f" + size.to_bytes(8, "big")
    async with raw_client(pairs) as (raw, ws):
        if fragment:
            await raw.send(frame(2, b"x", fin=False, masked=True))
        with taking_at_most(128 * KIB):
            await raw.send(frame(0 if fragment else 2, length=length, masked=True))
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.receive()
            assert caught.value.code == code
            await expect_close(raw, code)


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
async def test_a_length_within_the_limit_takes_what_has_come(pairs: Pairs) -> None:
    length = b"\x7f" + (16 * MIB).to_bytes(8, "big")
    async with raw_client(pairs) as (raw, ws):
        with taking_at_most(128 * KIB):
            async with anyio.create_task_group() as tg:
                tg.start_soon(ws.receive)
                await raw.send(frame(2, length=length, masked=True) + b"begun")
                for _ in range(10):
                    await anyio.wait_all_tasks_blocked()
                tg.cancel_scope.cancel()


# Compression


@pytest.fixture
def inflated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of an inflater gave."""
    sizes: list[int] = []
    read = Inflater.read

    def counting(self: Inflater, size: int) -> bytes:
        data = read(self, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(Inflater, "read", counting)
    return sizes


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
@pytest.mark.parametrize("nested", [False, True], ids=["one frame", "fragments"])
async def test_a_bomb_is_inflated_to_the_limit_and_no_further(
    pairs: Pairs, nested: bool, inflated: list[int]
) -> None:
    bomb = deflated(bytes(32 * MIB))
    pieces = [bomb[start : start + 1000] for start in range(0, len(bomb), 1000)]
    if nested:
        frames = [
            frame(0 if index else 2, piece, fin=False, rsv=0 if index else 4, masked=True)
            for index, piece in enumerate(pieces)
        ]
        data = b"".join(frames) + frame(0, masked=True)
    else:
        data = frame(2, bomb, rsv=4, masked=True)
    settings = Settings(max_message_size=MIB, compression=Deflate())
    async with raw_client(pairs, settings, **_OFFER) as (raw, ws):
        await raw.send(data)
        with taking_at_most(2 * MIB), pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1009
        await expect_close(raw, 1009)
    # The rest of a message that was given up, and what was ahead of its receiver.
    assert sum(inflated) <= MIB + 256 * KIB + 64 * KIB


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
async def test_a_bomb_that_nobody_receives_is_inflated_to_the_read_ahead(
    pairs: Pairs, inflated: list[int]
) -> None:
    settings = Settings(compression=Deflate(), ping_interval=None)
    bomb = frame(2, deflated(bytes(8 * MIB)), rsv=4, masked=True)
    async with raw_client(pairs, settings, **_OFFER) as (raw, ws):
        with taking_at_most(MIB):
            await raw.send(bomb)
            await anyio.sleep(0.5)
        assert sum(inflated) <= (256 + 64) * KIB
        await cut(raw.stream)


@pytest.mark.anyio
@pytest.mark.usefixtures("codec")
async def test_a_bomb_received_as_a_stream_takes_a_few_slices(pairs: Pairs) -> None:
    bomb = frame(2, deflated(bytes(32 * MIB)), rsv=4, masked=True)
    async with raw_client(pairs, Settings(compression=Deflate()), **_OFFER) as (raw, ws):
        await raw.send(bomb)
        total = 0
        # Once in a few runs of the whole suite, something else in its process takes 0.6 MB.
        with taking_at_most(2 * MIB):
            async with ws.receive_stream() as pieces:
                async for piece in pieces:
                    assert len(piece) <= 64 * KIB
                    total += len(piece)
        assert total == 32 * MIB


# Text

#: Text that is not valid, and with which of its bytes that is certain. (Python waits for the
#: whole of a surrogate.)
_BAD_TEXT = [
    (b"\x80", 1),
    (b"\xc0\xaf", 1),
    (b"\xc3\x28", 2),
    (b"\xe0\x80\xaf", 2),
    (b"\xed\xa0\x80", 3),
    (b"\xe2\x82\x28", 3),
    (b"\xf0\x80\x80\xaf", 2),
    (b"\xf0\x90\x80\x28", 4),
    (b"\xf4\x90\x80\x80", 2),
    (b"\xf8\x88\x80\x80\x80", 1),
    (b"\xff", 1),
]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize(("bad", "certain"), _BAD_TEXT)
@pytest.mark.parametrize("fragments", [False, True])
def test_invalid_utf8_is_seen_at_once_wherever_it_is_cut(
    made: Any, bad: bytes, certain: int, fragments: bool
) -> None:
    text = "µ€\U0001f600".encode() + bad + b"behind"
    wrong = len(text) - len(bad) - len(b"behind") + certain
    for first in range(len(text) + 1):
        for second in range(first, min(first + 5, len(text) + 1)):
            edges = [0, first, second, len(text)]
            if fragments:
                chunks = [
                    frame(0 if index else 1, text[start:end], fin=index == 2, masked=True)
                    for index, (start, end) in enumerate(zip(edges, edges[1:], strict=False))
                ]
            else:
                data = frame(1, text, masked=True)
                head = len(data) - len(text)
                chunks = [data[: head + first], data[head + first : head + second]]
                chunks.append(data[head + second :])
            # With the piece that brought the byte, and no later.
            assert refused_with(made(client=False), chunks) == (
                next(index for index, end in enumerate(edges[1:]) if end >= wrong),
                1007,
            )


def refused_with(codec: Any, chunks: list[bytes]) -> tuple[int, int] | None:
    """Return the index of the piece that a codec refuses, and its code."""
    for index, chunk in enumerate(chunks):
        codec.receive_data(chunk)
        try:
            while codec.next_events()[0]:
                pass
        except CodecError as exc:
            return index, exc.code
    return None
