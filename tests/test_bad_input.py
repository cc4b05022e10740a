"""A peer that breaks the rules gets a clear end: on the wire and in the exception."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import (
    ConnectionClosedError,
    ConnectionClosedOK,
    Deflate,
    HandshakeError,
    InvalidHandshake,
    Rejected,
    Settings,
    Websocket,
    open_websocket_client,
    open_websocket_server,
)
from asyncwebsockets.events import Message, Ping, TextMessage

from .conftest import cut, until
from .frames import KEY, REQUEST, accept_for, close_payload, frame, parse_frame, response_for
from .test_codec import BAD_FRAMES

if TYPE_CHECKING:
    from .conftest import Pairs, Stream

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("codec")]


class Raw:
    """The other end of a connection, in bytes."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def read_until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self.buffer += await self.stream.receive()
        head, _, self.buffer = self.buffer.partition(mark)
        return head + mark

    async def frame(self) -> tuple[int, bytes]:
        while True:
            try:
                first, payload, self.buffer = parse_frame(self.buffer)
            except IndexError:
                self.buffer += await self.stream.receive()
            else:
                return first, payload

    async def aclose(self) -> None:
        """Close, whatever the other side does to TLS's own closing."""
        with suppress(anyio.BrokenResourceError, OSError):
            await self.stream.aclose()

    async def rest(self) -> bytes:
        """Everything up to the end, which has to be a clean one."""
        try:
            while True:
                self.buffer += await self.stream.receive()
        except anyio.EndOfStream:
            return self.buffer


@asynccontextmanager
async def raw_client(
    pairs: Pairs, settings: Settings | None = None, **request: str
) -> AsyncIterator[tuple[Raw, Websocket]]:
    """Give a raw client and our server's end."""
    near, far = await pairs.streams()
    raw = Raw(near)
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in request.items())
    await raw.send(REQUEST[:-2] + extra.encode() + b"\r\n")
    async with open_websocket_server(far, settings=settings) as ws:
        await raw.read_until(b"\r\n\r\n")
        try:
            yield raw, ws
        finally:
            await cut(near)


@asynccontextmanager
async def raw_server(
    pairs: Pairs, settings: Settings | None = None
) -> AsyncIterator[tuple[Raw, Websocket]]:
    """Give a raw server and our client's end."""
    near, far = await pairs.streams()
    raw = Raw(far)

    answered = anyio.Event()

    async def answer() -> None:
        await raw.send(response_for(await raw.read_until(b"\r\n\r\n")))
        answered.set()

    async with anyio.create_task_group() as tg:
        tg.start_soon(answer)
        async with open_websocket_client(near, ("example.com", 80), "/", settings=settings) as ws:
            await answered.wait()
            try:
                yield raw, ws
            finally:
                await cut(far)


@pytest.mark.parametrize(("data", "code"), BAD_FRAMES)
async def test_a_bad_frame_fails_the_connection(pairs: Pairs, data: bytes, code: int) -> None:
    async with raw_client(pairs) as (raw, ws):
        await raw.send(frame(2, b"before", masked=True) + data)
        assert await ws.receive_bytes() == b"before"
        with pytest.raises(ConnectionClosedError) as caught:
            while True:
                await ws.receive()
        assert caught.value.code == ws.close_code == code
        assert caught.value.reason
        first, payload = await raw.frame()
        assert first == 0x88
        assert int.from_bytes(payload[:2], "big") == code
        if not pairs.secure:
            # There the end comes once the peer has closed, too.
            assert await raw.rest() == b""
        with pytest.raises(ConnectionClosedError):
            await ws.send("x")


async def test_what_came_before_a_bad_frame_can_be_answered(pairs: Pairs) -> None:
    async with raw_client(pairs) as (raw, ws), anyio.create_task_group() as tg:

        async def echo() -> None:
            with pytest.raises(ConnectionClosedError):
                while True:
                    await ws.send(await ws.receive_text())

        tg.start_soon(echo)
        good = [frame(1, b"%d" % number, masked=True) for number in range(3)]
        await raw.send(b"".join([*good, frame(3, masked=True)]))
        for number in range(3):
            assert await raw.frame() == (0x81, b"%d" % number)
        first, payload = await raw.frame()
        assert (first, payload[:2]) == (0x88, close_payload(1002))


async def test_nothing_behind_a_bad_frame_is_received(pairs: Pairs) -> None:
    """In one read with a message in fragments, as in Autobahn's case 5.15."""
    async with raw_client(pairs) as (raw, ws):
        await raw.send(
            frame(1, b"frag", masked=True, fin=False)
            + frame(0, b"ments", masked=True)
            + frame(0, b"of nothing", masked=True, fin=False)
            + frame(1, b"behind", masked=True)
        )
        assert await ws.receive_text() == "fragments"
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1002


async def test_a_client_refuses_masked_frames(pairs: Pairs) -> None:
    async with raw_server(pairs) as (raw, ws):
        await raw.send(frame(1, b"x", masked=True))
        with pytest.raises(ConnectionClosedError, match="masked") as caught:
            await ws.receive()
        assert caught.value.code == 1002
        first, payload = await raw.frame()
        assert (first, payload[:2]) == (0x88, close_payload(1002))


async def test_a_close_is_echoed_with_its_code(pairs: Pairs) -> None:
    for payload in (b"", close_payload(1000, "x"), close_payload(4321, "é")):
        async with raw_client(pairs) as (raw, ws):
            await raw.send(frame(8, payload, masked=True) + b"anything behind it")
            with pytest.raises(ConnectionClosedOK) as caught:
                await ws.receive()
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            assert (caught.value.code, ws.close_code) == (code, code)
            assert await raw.frame() == (0x88, payload)
            if not pairs.secure:
                assert await raw.rest() == b""


async def test_the_server_closes_tcp_first(pairs: Pairs) -> None:
    async with raw_server(pairs) as (raw, ws), anyio.create_task_group() as tg:
        tg.start_soon(ws.close, 4000)
        assert await raw.frame() == (0x88, close_payload(4000, "Connection closed"))
        await raw.send(
            frame(1, b"late", masked=False) + frame(8, close_payload(4000), masked=False)
        )
        await anyio.wait_all_tasks_blocked()
        # The client waits for our end before it closes its own.
        assert raw.buffer == b""
        await raw.aclose()
    assert ws.close_code == 4000


async def test_pings_are_answered_in_order_and_without_the_handlers_help(pairs: Pairs) -> None:
    async with raw_client(pairs) as (raw, ws):
        for number in range(10):
            await raw.send(frame(9, b"%d" % number, masked=True))
        for number in range(10):
            assert await raw.frame() == (0x8A, b"%d" % number)
        for number in range(10):
            assert await ws.receive() == Ping(b"%d" % number)


async def test_control_frames_come_between_fragments(pairs: Pairs) -> None:
    async with raw_client(pairs) as (raw, ws):
        await raw.send(
            frame(1, b"\xc3", fin=False, masked=True)
            + frame(9, b"p", masked=True)
            + frame(0, b"\xa9", masked=True)
        )
        assert await raw.frame() == (0x8A, b"p")
        assert await ws.receive() == Ping(b"p")
        assert await ws.receive_text() == "é"


async def test_a_pong_nobody_asked_for_is_an_event(pairs: Pairs) -> None:
    async with raw_client(pairs) as (raw, ws):
        await raw.send(frame(10, b"beat", masked=True))
        event = await ws.receive()
        assert type(event).__name__ == "Pong"
        assert event.payload == b"beat"  # type: ignore[attr-defined]


async def test_a_ping_flood_leaves_nothing_behind(pairs: Pairs) -> None:
    async with raw_client(pairs) as (raw, ws), anyio.create_task_group() as tg:

        async def flood() -> None:
            for number in range(100):
                await raw.send(b"".join(frame(9, b"%d" % number, masked=True) for _ in range(50)))

        tg.start_soon(flood)
        # RFC 6455 section 5.5.3: the latest is answered at least.
        while await raw.frame() != (0x8A, b"99"):
            pass
        events = 0
        await raw.send(frame(1, b"end", masked=True))
        while isinstance(await ws.receive(), Ping):
            events += 1
        assert events <= 32


async def test_too_long_a_frame_is_refused_at_its_header(pairs: Pairs) -> None:
    async with raw_client(pairs, Settings(max_message_size=100)) as (raw, ws):
        await raw.send(frame(2, length=b"\x7f" + (2**62).to_bytes(8, "big"), masked=True))
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1009
        assert (await raw.frame())[1][:2] == close_payload(1009)


async def test_a_handler_that_does_not_receive_stalls_the_peer(pairs: Pairs) -> None:
    settings = Settings(max_read_ahead=1000)
    async with raw_client(pairs, settings) as (raw, ws), anyio.create_task_group() as tg:
        # More than the kernel and the library may hold between them.
        total = 400
        message = frame(2, b"x" * 100_000, masked=True)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(total):
                await raw.send(message)
                sent += 1

        tg.start_soon(flood)
        for _ in range(100):
            await anyio.wait_all_tasks_blocked()
        assert sent < total
        for _ in range(total):
            assert len(await ws.receive_bytes()) == 100_000


async def test_nothing_is_received_after_a_message_that_was_too_big(pairs: Pairs) -> None:
    async with raw_client(pairs, Settings(max_message_size=100)) as (raw, ws):
        piece = b"x" * 60
        await raw.send(
            frame(2, piece, fin=False, masked=True)
            + frame(0, piece, fin=False, masked=True)
            + frame(0, piece, masked=True)
            + frame(1, b"next", masked=True)
        )
        for _ in range(3):
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.receive()
            assert caught.value.code == 1009


async def test_tiny_fragments_take_little_more_than_their_size(pairs: Pairs) -> None:
    if pairs.kind != "memory":
        return
    async with raw_client(pairs, Settings(ping_interval=None)) as (raw, ws):
        count = 20_000
        fragments = frame(2, fin=False, masked=True) + frame(0, b"x", fin=False, masked=True) * 1000
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            async with anyio.create_task_group() as tg:
                tg.start_soon(ws.receive)
                await raw.send(fragments)
                for _ in range(count // 1000 - 1):
                    await raw.send(fragments[6:])
                await until(lambda: ws._pieces.size == count)
                # As objects of their own the pieces would take a megabyte.
                assert tracemalloc.get_traced_memory()[0] - before < 300_000
                tg.cancel_scope.cancel()
        finally:
            tracemalloc.stop()
        await raw.send(frame(0, b"!", masked=True))
        assert await ws.receive_bytes() == b"x" * count + b"!"


@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("by_piece", [False, True])
async def test_who_stops_waiting_in_a_large_message_loses_nothing_of_it(
    pairs: Pairs, opcode: int, by_piece: bool
) -> None:
    text = "é€𝄞" * 100_000
    data = frame(opcode, text.encode(), masked=True) + frame(2, b"behind", masked=True)
    async with raw_client(pairs) as (raw, ws), anyio.create_task_group() as tg:
        first, second, rest = data[:200_000], data[200_000:500_001], data[500_001:]
        for part in (first, second):
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(ws.receive)
                await anyio.wait_all_tasks_blocked()
                await raw.send(part)
                await anyio.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
        tg.start_soon(raw.send, rest)
        if by_piece:
            async with ws.receive_stream() as pieces:
                parts = [piece async for piece in pieces]
            got = "".join(parts) if opcode == 1 else b"".join(parts).decode()  # type: ignore[arg-type]
        else:
            event = await ws.receive()
            assert isinstance(event, Message)
            got = event.data if opcode == 1 else event.data.decode()
        assert got == text
        assert await ws.receive_bytes() == b"behind"


async def test_the_pong_of_a_ping_that_was_given_up_is_no_event(pairs: Pairs) -> None:
    async with raw_client(pairs) as (raw, ws):
        async with anyio.create_task_group() as tg:
            tg.start_soon(ws.ping, b"mine")
            assert await raw.frame() == (0x89, b"mine")
            tg.cancel_scope.cancel()
        await raw.send(frame(10, b"mine", masked=True) + frame(1, b"x", masked=True))
        event = await ws.receive()
        assert isinstance(event, TextMessage)


async def test_a_peer_that_closes_and_resets_at_once(
    pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(5):
        async with raw_client(pairs) as (raw, ws):
            await raw.send(frame(8, close_payload(1000), masked=True))
            await cut(raw.stream)
            with pytest.raises((ConnectionClosedOK, ConnectionClosedError)):
                await ws.receive()
    assert not caplog.records


async def test_a_torn_connection_is_1006(pairs: Pairs) -> None:
    async with raw_client(pairs) as (raw, ws):
        await raw.send(frame(1, b"whole", masked=True) + frame(1, b"torn", masked=True)[:-1])
        await raw.aclose()
        assert await ws.receive_text() == "whole"
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1006


# The opening handshake


def request(change: dict[str, str | None], method: str = "GET", target: str = "/") -> bytes:
    fields: dict[str, str | None] = {
        "Host": "example.com",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **change,
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode()


BAD_REQUESTS: list[Any] = [
    pytest.param(b"nonsense\r\n\r\n", 400, id="nonsense"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 2, 400, id="TLS"),
    pytest.param(request({"Host": None}), 400, id="no host"),
    pytest.param(request({"Connection": "keep-alive"}), 400, id="no connection upgrade"),
    pytest.param(request({"Sec-WebSocket-Key": None}), 400, id="no key"),
    pytest.param(request({"Sec-WebSocket-Key": "short"}), 400, id="short key"),
    pytest.param(request({"Sec-WebSocket-Key": "!" * 24}), 400, id="key not base64"),
    pytest.param(request({"Sec-WebSocket-Version": None}), 400, id="no version"),
    pytest.param(request({"Sec-WebSocket-Version": "8"}), 426, id="version 8"),
    pytest.param(request({"Sec-WebSocket-Protocol": "a b"}), 400, id="subprotocol"),
    pytest.param(request({"Sec-WebSocket-Protocol": "a, a"}), 400, id="subprotocol twice"),
    pytest.param(request({"Sec-WebSocket-Extensions": "a; b=;"}), 400, id="extensions"),
    pytest.param(request({"Content-Length": "5"}), 400, id="body"),
    pytest.param(request({"Transfer-Encoding": "chunked"}), 400, id="chunked body"),
    pytest.param(request({}, method="POST"), 405, id="POST"),
    pytest.param(request({"Upgrade": None}, method="POST"), 405, id="plain POST"),
    pytest.param(request({"Upgrade": None}), 426, id="plain HTTP"),
    pytest.param(request({"Upgrade": None}, method="HEAD"), 405, id="plain HEAD"),
    pytest.param(request({}, method="HEAD"), 405, id="HEAD"),
    pytest.param(request({"Upgrade": None, "Content-Length": "5"}, "HEAD"), 400, id="HEAD's body"),
    pytest.param(request({"X": "y" * 70_000}), 431, id="oversized"),
    pytest.param(b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000, 431, id="oversized and unfinished"),
    pytest.param(request({}).replace(b"HTTP/1.1", b"HTTP/1.0"), 400, id="HTTP/1.0"),
    pytest.param(request({}, target="nowhere"), 400, id="target without a slash"),
]


@pytest.mark.parametrize(("data", "status"), BAD_REQUESTS)
async def test_a_bad_request_gets_its_status(
    pairs: Pairs, data: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    near, far = await pairs.streams()
    raw = Raw(near)

    async def ask() -> None:
        await raw.send(data)
        head = await raw.read_until(b"\r\n\r\n")
        assert int(head.split()[1]) == status
        if status == 426:
            assert b"Sec-WebSocket-Version: 13\r\n" in head
            assert b"Upgrade: websocket\r\n" in head
        if status == 405:
            assert b"Allow: GET\r\n" in head
        assert b"close" in head.lower().partition(b"connection: ")[2].partition(b"\r\n")[0]
        if not pairs.secure:
            assert bool(await raw.rest()) is not data.startswith(b"HEAD")
        await raw.aclose()

    async with anyio.create_task_group() as tg:
        tg.start_soon(ask)
        with pytest.raises(InvalidHandshake) as caught:
            async with open_websocket_server(far):
                pytest.fail("a bad request was accepted")
        assert caught.value.status == status
    assert not caplog.records


async def test_a_client_that_leaves_in_its_request(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    await near.send(REQUEST[:20])
    async with anyio.create_task_group() as tg:
        tg.start_soon(Raw(near).aclose)
        with pytest.raises(HandshakeError):
            async with open_websocket_server(far):
                pytest.fail("half a request was accepted")


Answer = Callable[[bytes], bytes]


def changed(**fields: str | None) -> Answer:
    def answer(data: bytes) -> bytes:
        key = data.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
        all_fields: dict[str, str | None] = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": accept_for(key),
            **{name.replace("_", "-"): value for name, value in fields.items()},
        }
        lines = [f"{name}: {value}" for name, value in all_fields.items() if value is not None]
        return "\r\n".join(["HTTP/1.1 101 Switching", *lines, "", ""]).encode()

    return answer


BAD_ANSWERS: list[Any] = [
    pytest.param(lambda _: b"nonsense\r\n\r\n", "malformed", id="nonsense"),
    pytest.param(lambda _: b"", "without a response", id="nothing"),
    pytest.param(lambda _: b"HTTP/1.1 101 Sw", "without a response", id="half a line"),
    pytest.param(changed(Upgrade=None), "Upgrade", id="no upgrade"),
    pytest.param(changed(Upgrade="h2c"), "Upgrade", id="another upgrade"),
    pytest.param(changed(Connection=None), "Connection", id="no connection"),
    pytest.param(changed(Sec_WebSocket_Accept=None), "Accept", id="no accept"),
    pytest.param(changed(Sec_WebSocket_Accept="x"), "Accept", id="another accept"),
    pytest.param(changed(Sec_WebSocket_Protocol="c"), "subprotocols", id="not offered"),
    pytest.param(changed(Sec_WebSocket_Protocol="a, b"), "subprotocols", id="two subprotocols"),
    pytest.param(changed(Sec_WebSocket_Extensions="x"), "not offered", id="extension"),
    pytest.param(
        changed(Sec_WebSocket_Extensions="permessage-deflate; x"), "not fit", id="parameter"
    ),
    pytest.param(
        changed(Sec_WebSocket_Extensions="permessage-deflate, permessage-deflate"),
        "not offered",
        id="extension twice",
    ),
    pytest.param(lambda _: b"HTTP/1.1 101 S\r\nX: " + b"y" * 70_000, "malformed|more", id="big"),
]


@pytest.mark.parametrize(("answer", "match"), BAD_ANSWERS)
async def test_a_bad_answer_is_an_invalid_handshake(
    pairs: Pairs, answer: Answer, match: str
) -> None:
    near, far = await pairs.streams()
    raw = Raw(far)

    async def reply() -> None:
        data = answer(await raw.read_until(b"\r\n\r\n"))
        if data:
            await raw.send(data)
        await raw.aclose()

    async with anyio.create_task_group() as tg:
        tg.start_soon(reply)
        with pytest.raises(HandshakeError, match=match) as caught:
            async with open_websocket_client(
                near, "h", "/", subprotocols=["a", "b"], settings=Settings(compression=Deflate())
            ):
                pytest.fail("a bad answer was accepted")
        assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize("framing", ["length", "chunked", "until the end", "cut off", "too long"])
async def test_a_rejections_body_is_kept(pairs: Pairs, framing: str) -> None:
    body = b"because " * 10
    head = b"HTTP/1.1 403 Forbidden\r\nX-Why: a\r\nX-Why: b\r\n"
    answers = {
        "length": head + b"Content-Length: 80\r\n\r\n" + body,
        "chunked": head + b"Transfer-Encoding: chunked\r\n\r\n50\r\n" + body + b"\r\n0\r\n\r\n",
        "until the end": head + b"\r\n" + body,
        "cut off": head + b"Content-Length: 100\r\n\r\n" + body,
        "too long": head + b"Content-Length: 1000000\r\n\r\n" + body * 12_500,
    }
    near, far = await pairs.streams()
    raw = Raw(far)

    async def reply() -> None:
        await raw.read_until(b"\r\n\r\n")
        try:
            await raw.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + answers[framing])
        except (anyio.BrokenResourceError, OSError):
            assert framing == "too long"
        await raw.aclose()

    async with anyio.create_task_group() as tg:
        tg.start_soon(reply)
        with pytest.raises(Rejected) as caught:
            async with open_websocket_client(near, "h", "/"):
                pytest.fail("a rejection was taken for a connection")
    assert caught.value.status == 403
    assert [value for name, value in caught.value.headers if name == b"X-Why"] == [b"a", b"b"]
    if framing == "too long":
        assert caught.value.body == (body * 12_500)[: 64 * 1024]
    else:
        assert caught.value.body == body


async def test_bytes_behind_the_handshake_are_not_lost(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    await near.send(REQUEST + frame(1, b"early", masked=True))

    async def slow(request: Any) -> bool:
        await near.send(frame(1, b"while the filter ran", masked=True))
        await anyio.wait_all_tasks_blocked()
        return True

    async with open_websocket_server(far, slow) as ws:
        assert await ws.receive_text() == "early"
        assert await ws.receive_text() == "while the filter ran"
        await cut(near)

    near, far = await pairs.streams()
    raw = Raw(far)

    async def answer() -> None:
        head = await raw.read_until(b"\r\n\r\n")
        await raw.send(response_for(head) + frame(1, b"early", masked=False))

    async with anyio.create_task_group() as tg:
        tg.start_soon(answer)
        async with open_websocket_client(near, "h", "/") as client:
            assert await client.receive_text() == "early"
            await cut(far)
