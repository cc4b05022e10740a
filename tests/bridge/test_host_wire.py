"""An application on our host and a client of bytes: what each makes of the other."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from asgi_bridge import ClientDisconnected, serve_app
from asyncwebsockets import Deflate, Settings, open_websocket_client

from ..conftest import cut, until
from ..frames import KEY, close_payload, frame
from .scenarios import Raw
from .wire import ACCEPT, Application, connected, in_memory, on_tcp

if TYPE_CHECKING:
    from .wire import Carrier

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[on_tcp, in_memory], ids=["tcp", "memory"])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    chosen: Carrier = request.param
    return chosen


def masked(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return frame(opcode, payload, fin=fin, masked=True)


async def echo(receive: Any, send: Any) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


# Bad handshakes


def request(method: str = "GET", behind: bytes = b"", **fields: str | None) -> bytes:
    merged: dict[str, str | None] = {
        "Host": "localhost",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    lines = [f"{name}: {value}" for name, value in merged.items() if value is not None]
    return "\r\n".join([f"{method} / HTTP/1.1", *lines, "", ""]).encode() + behind


@pytest.mark.parametrize(
    ("data", "status", "fields"),
    [
        pytest.param(
            request(Upgrade=None, Connection=None),
            426,
            [b"upgrade: websocket", b"sec-websocket-version: 13"],
            id="GET",
        ),
        pytest.param(request("POST"), 405, [b"allow: get"], id="POST"),
        pytest.param(request(behind=b"12345", Content_Length="5"), 400, [], id="body"),
        pytest.param(
            request(Sec_WebSocket_Version="8"), 426, [b"sec-websocket-version: 13"], id="version 8"
        ),
        pytest.param(request(Sec_WebSocket_Key="short"), 400, [], id="key"),
        pytest.param(request(X="x" * 70_000), 431, [], id="too large"),
    ],
)
async def test_a_bad_handshake_never_comes_to_the_application(
    carrier: Carrier,
    data: bytes,
    status: int,
    fields: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    called = 0
    accepts = Application()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal called
        called += 1
        await accepts(scope, receive, send)

    async with carrier(app) as connect:
        stream = await connect()
        answer = b""

        async def read() -> None:
            nonlocal answer
            while b"\r\n\r\n" not in answer:
                answer += await stream.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await stream.send(data)
        head = answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
        assert int(head[0].split()[1]) == status
        assert set(fields) <= set(head)
        await cut(stream)
        assert called == 0
        # And the server is none the worse for it.
        stream = await connect()
        assert await Raw(stream).handshake("/") == 101
        await cut(stream)
        await accepts.ended.wait()
    assert called == 1
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


async def test_what_comes_behind_the_request_is_delivered(carrier: Carrier) -> None:
    app = Application()
    early = masked(1, b"early") + masked(2, b"\x00") + masked(8, close_payload(4000))
    async with carrier(app) as connect:
        stream = await connect()
        raw = Raw(stream)
        assert await raw.handshake("/", early) == 101
        assert await raw.end() == {"close": 4000}
        await cut(stream)
        await app.ended.wait()
    assert app.received == ["early", b"\x00"]
    assert app.end == (4000, "")


@pytest.mark.parametrize("error", [LookupError, ClientDisconnected])
async def test_a_failure_in_a_handshake_that_is_lost_is_logged_once(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        # The answer is given, and what becomes of it not waited for.
        with anyio.CancelScope() as scope:
            scope.cancel()
            await send(ACCEPT)
        raise error

    async with in_memory(app) as connect:
        stream: Any = await connect()
        # The answer finds nobody; that the client is still sending keeps it from being noticed.
        await stream.receive_stream.aclose()
        await stream.send(request())
        await anyio.wait_all_tasks_blocked()
        await cut(stream)
    logged = [record.exc_info for record in caplog.records if record.levelname == "ERROR"]
    assert [info and info[0] for info in logged] == [LookupError][: error is LookupError]


@pytest.mark.parametrize(
    "message", [{"type": "websocket.send", "text": "late"}, {"type": "websocket.close"}]
)
async def test_nothing_can_be_sent_in_a_handshake_that_is_lost(message: dict[str, str]) -> None:
    raised: list[Exception] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await send(ACCEPT)
        # It is not lost yet.
        try:
            await send(message)
        except ClientDisconnected as exc:
            raised.append(exc)

    async with in_memory(app) as connect:
        stream: Any = await connect()
        await stream.receive_stream.aclose()
        await stream.send(request())
        await anyio.wait_all_tasks_blocked()
        await cut(stream)
    assert len(raised) == 1


async def test_a_client_that_leaves_in_the_middle_of_a_denial(carrier: Carrier) -> None:
    raised: list[Exception] = []
    ended = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 503})
        try:
            while True:
                piece = {"body": bytes(PIECE), "more_body": True}
                await send({"type": "websocket.http.response.body", **piece})
        except ClientDisconnected as exc:
            raised.append(exc)
        ended.set()

    async with carrier(app) as connect:
        stream = await connect()
        assert await Raw(stream).handshake("/") == 503
        await cut(stream)
        await ended.wait()
    assert len(raised) == 1


def start(status: int, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "websocket.http.response.start", "status": status, "headers": headers}


def body(data: bytes, more_body: bool = False) -> dict[str, Any]:
    return {"type": "websocket.http.response.body", "body": data, "more_body": more_body}


async def answer(stream: Any) -> tuple[list[bytes], bytes]:
    """Return the head of an answer, in lower case, and what comes behind it."""
    await stream.send(request())
    data = b""
    with suppress(anyio.EndOfStream):
        while True:
            data += await stream.receive()
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.lower().split(b"\r\n"), rest


@pytest.mark.parametrize(
    ("headers", "pieces", "framing", "rest"),
    [
        pytest.param([], [b"no"], [b"content-length: 2"], b"no", id="whole"),
        pytest.param(
            [],
            [b"n", b"o"],
            [b"transfer-encoding: chunked"],
            b"1\r\nn\r\n1\r\no\r\n0\r\n\r\n",
            id="chunked",
        ),
        pytest.param(
            [(b"Content-Length", b"2")], [b"n", b"o"], [b"content-length: 2"], b"no", id="length"
        ),
        pytest.param(
            [(b"Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=5")],
            [b"no"],
            [b"content-length: 2"],
            b"no",
            id="keep-alive",
        ),
    ],
)
async def test_a_denial_on_the_wire(
    carrier: Carrier,
    headers: list[tuple[bytes, bytes]],
    pieces: list[bytes],
    framing: list[bytes],
    rest: bytes,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), *headers]
        await send(start(401, *fields))
        for piece in pieces[:-1]:
            await send(body(piece, more_body=True))
        await send(body(pieces[-1]))

    async with carrier(app) as connect:
        stream = await connect()
        head, behind = await answer(stream)
        await cut(stream)
    assert head[0] == b"http/1.1 401 unauthorized"
    fields = [line for line in head[1:] if not line.startswith(b"date: ")]
    assert sorted(fields) == sorted(
        [b"set-cookie: a=1", b"set-cookie: b=2", b"connection: close", *framing]
    )
    assert behind == rest


async def test_a_denial_is_streamed(carrier: Carrier) -> None:
    seen = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(503))
        await send(body(b"first", more_body=True))
        await seen.wait()
        await send(body(b"last"))

    async with carrier(app) as connect:
        stream = await connect()
        await stream.send(request())
        data = b""
        while b"first" not in data:
            data += await stream.receive()
        assert b"last" not in data
        seen.set()
        while not data.endswith(b"last\r\n0\r\n\r\n"):
            data += await stream.receive()
        await cut(stream)


@pytest.mark.parametrize("raises", [False, True])
async def test_a_denial_that_breaks_off_does_not_look_whole(carrier: Carrier, raises: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(503))
        await send(body(b"first", more_body=True))
        if raises:
            raise LookupError

    async with carrier(app) as connect:
        stream = await connect()
        _, behind = await answer(stream)
        await cut(stream)
    assert behind == b"5\r\nfirst\r\n"


async def test_an_accept_on_the_wire(carrier: Carrier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"set-cookie", b"a=1"), (b"x-a", b"\xff"), (b"set-cookie", b"b=2")]
        await send({**ACCEPT, "headers": headers})

    async with carrier(app) as connect:
        stream = await connect()
        await stream.send(request(Sec_WebSocket_Protocol="a, b"))
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive()
        await cut(stream)
    head = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    own = [line for line in head if line.lower().startswith((b"set-cookie", b"x-"))]
    assert own == [b"set-cookie: a=1", b"x-a: \xff", b"set-cookie: b=2"]
    # The application has chosen none of those that were offered.
    assert b"sec-websocket-protocol" not in data.lower()


async def test_a_client_that_has_sent_something_leaves_before_it_is_accepted(
    carrier: Carrier,
) -> None:
    seen: list[Any] = []
    begun, ended = anyio.Event(), anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        begun.set()
        # What it has sent, it has sent to nobody.
        seen.append(await receive())
        ended.set()

    async with carrier(app) as connect:
        stream = await connect()
        await stream.send(request() + masked(1, b"early"))
        await begun.wait()
        await stream.send(masked(1, b"more"))
        await cut(stream)
        await ended.wait()
    assert seen == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


async def test_a_client_that_leaves_does_not_cancel_the_application(carrier: Carrier) -> None:
    left = anyio.Event()
    done = False

    async def works(receive: Any, send: Any) -> None:
        nonlocal done
        await left.wait()
        await all_blocked()
        done = True

    app = Application(works)
    async with connected(carrier, app) as raw:
        await raw.send(masked(8, close_payload(4000)))
        assert await raw.end() == {"close": 4000}
        left.set()
    assert done
    assert app.end == (4000, "")


# Messages


@pytest.mark.parametrize("compression", [None, Deflate(threshold=0)], ids=["plain", "deflate"])
@pytest.mark.parametrize("data", ["é" * 5_000, bytes(10_000)], ids=["text", "binary"])
async def test_the_size_of_a_message_is_limited(
    carrier: Carrier, compression: Deflate | None, data: str | bytes
) -> None:
    settings = Settings(max_message_size=10_000, compression=compression)
    app = Application()
    async with carrier(app, settings) as connect:
        async with open_websocket_client(
            await connect(), "localhost", "/", settings=Settings(compression=compression)
        ) as ws:
            assert bool(ws.extensions) is (compression is not None)
            await ws.send(data)
            # One byte more.
            await ws.send("x" + data if isinstance(data, str) else b"x" + data)
            assert [event async for event in ws] == []
            assert ws.close_code == 1009
        await app.ended.wait()
    assert app.received == [data]
    assert app.end[0] == 1009


async def test_a_bomb_is_stopped_while_it_is_inflated(carrier: Carrier) -> None:
    settings = Settings(max_message_size=10_000, compression=Deflate())
    app = Application()
    async with carrier(app, settings) as connect:
        async with open_websocket_client(
            await connect(), "localhost", "/", settings=Settings(compression=Deflate())
        ) as ws:
            # Some 16 KiB on the wire.
            await ws.send(bytes(2**24))
            assert [event async for event in ws] == []
            assert ws.close_code == 1009
        await app.ended.wait()
    assert app.received == []
    assert app.end[0] == 1009


@pytest.mark.parametrize(("client", "server"), [(True, False), (False, True), (True, True)])
async def test_compression_is_what_both_want(carrier: Carrier, client: bool, server: bool) -> None:
    def settings(wanted: bool) -> Settings:
        return Settings(compression=Deflate(threshold=0) if wanted else None)

    app = Application(echo)
    async with carrier(app, settings(server)) as connect:
        async with open_websocket_client(
            await connect(), "localhost", "/", settings=settings(client)
        ) as ws:
            assert bool(ws.extensions) is (client and server)
            for data in ("größer" * 1000, "", b"\x00" * 5000):
                await ws.send(data)
                event = await ws.receive()
                assert getattr(event, "data", None) == data
        await app.ended.wait()


async def test_text_in_fragments_that_cut_a_character(carrier: Carrier) -> None:
    app = Application(echo)
    text = "größer 😀".encode()
    async with connected(carrier, app) as raw:
        pieces = [text[:3], text[3:-2], text[-2:]]
        for number, piece in enumerate(pieces):
            await raw.send(masked(0 if number else 1, piece, fin=piece is pieces[-1]))
            if piece is not pieces[-1]:
                await raw.send(masked(9, b"%d" % number))
                assert await raw.frame() == (10, b"%d" % number)
        assert await raw.frame() == (1, text)
        await raw.send(masked(8, close_payload(1000)))
        assert await raw.end() == {"close": 1000}
    assert app.received == ["größer 😀"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(masked(1, b"\xff"), 1007, id="UTF-8"),
        pytest.param(masked(1, b"gr\xc3", fin=False) + masked(0, b"x"), 1007, id="cut UTF-8"),
        pytest.param(masked(3), 1002, id="opcode"),
        pytest.param(frame(1, b"x", masked=False), 1002, id="not masked"),
        pytest.param(masked(8, close_payload(1000, "x" * 124)), 1002, id="too long a reason"),
        pytest.param(masked(8, close_payload(1005)), 1002, id="a code that may not be sent"),
        pytest.param(masked(8, close_payload(1000) + b"\xff"), 1007, id="reason in bad UTF-8"),
    ],
)
async def test_a_broken_rule_is_a_code_on_both_sides(
    carrier: Carrier, data: bytes, code: int
) -> None:
    async def sends_late(receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "late"})

    app = Application(sends_late)
    async with connected(carrier, app) as raw:
        await raw.send(data)
        assert await raw.end() == {"close": code}
    assert app.end[0] == code


# The end


@pytest.mark.parametrize("code", [1000, 1001, 4001])
@pytest.mark.parametrize("reason", ["", "over", "x" * 123, "x" + "é" * 61, "😀" * 30 + "xyz"])
async def test_the_peers_close(carrier: Carrier, code: int, reason: str) -> None:
    app = Application()
    async with connected(carrier, app) as raw:
        await raw.send(masked(8, close_payload(code, reason)))
        opcode, payload = await raw.frame() or (0, b"")
        assert (opcode, payload[:2]) == (8, close_payload(code))
    assert app.end == (code, reason)


async def test_the_peers_close_without_a_code(carrier: Carrier) -> None:
    app = Application()
    async with connected(carrier, app) as raw:
        await raw.send(masked(8))
        assert await raw.frame() == (8, b"")
    assert app.end == (1005, "")


@pytest.mark.parametrize(
    ("data", "code"),
    [(masked(8, close_payload(4001)), 4001), (masked(8), 1005), (masked(3), 1002)],
)
async def test_the_end_is_told_before_tcp_has_ended(
    carrier: Carrier, data: bytes, code: int
) -> None:
    app = Application()
    # So the peer could have it wait for ever.
    async with connected(carrier, app, Settings(close_timeout=None)) as raw:
        await raw.send(data)
        assert await raw.end() == {"close": code}
        await app.ended.wait()
    assert app.end[0] == code


async def test_a_peer_that_ends_only_its_half(carrier: Carrier) -> None:
    app = Application()
    async with carrier(app) as connect:
        stream = await connect()
        raw = Raw(stream)
        assert await raw.handshake("/") == 101
        await stream.send_eof()
        assert await raw.frame() is None
        await cut(stream)
        await app.ended.wait()
    assert app.end[0] == 1006


async def test_a_peer_that_is_gone(carrier: Carrier) -> None:
    app = Application()
    async with carrier(app) as connect:
        stream = await connect()
        assert await Raw(stream).handshake("/") == 101
        await cut(stream)
        await app.ended.wait()
    assert app.end[0] == 1006


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("x" + "é" * 61, "x" + "é" * 61),
        ("é" * 62, "é" * 61),
        ("x" * 122 + "é", "x" * 122),
        ("😀" * 31, "😀" * 30),
        ("x" * 120 + "😀", "x" * 120),
    ],
)
async def test_a_reason_is_cut_at_a_character(carrier: Carrier, reason: str, sent: str) -> None:
    async def close(receive: Any, send: Any) -> None:
        await send({"type": "websocket.close", "code": 4002, "reason": reason})

    app = Application(close)
    async with connected(carrier, app) as raw:
        assert await raw.frame() == (8, close_payload(4002, sent))
        await raw.send(masked(8, close_payload(4002, sent)))
        assert await raw.frame() is None
    assert app.end == (4002, sent)


@pytest.mark.parametrize("first", ["ours", "theirs"])
async def test_both_close_at_once(carrier: Carrier, first: str) -> None:
    go = anyio.Event()

    async def close(receive: Any, send: Any) -> None:
        await go.wait()
        await send({"type": "websocket.close", "code": 4002})

    app = Application(close)
    theirs = masked(8, close_payload(4001, "theirs"))
    async with connected(carrier, app) as raw:
        if first == "theirs":
            await raw.send(theirs)
            # Answered before the application has sent its own, which then is not sent.
            assert await raw.frame() == (8, close_payload(4001, "theirs"))
            go.set()
        else:
            go.set()
            assert await raw.frame() == (8, close_payload(4002))
            await raw.send(theirs)
        # Neither sends a second one.
        assert await raw.frame() is None
    assert app.end == (4001, "theirs")


# Flow

PIECE = 100_000
# What two kernels' buffers and ours may hold; and more than that.
HELD = 32 * 2**20
MUCH = 2 * HELD // PIECE


async def all_blocked() -> None:
    """Wait until nothing moves any more, the bytes in the kernel included."""
    for _ in range(100):
        await anyio.wait_all_tasks_blocked()


async def test_a_peer_that_does_not_read_blocks_the_application(carrier: Carrier) -> None:
    sent = 0

    async def flood(receive: Any, send: Any) -> None:
        nonlocal sent
        for _ in range(MUCH):
            await send({"type": "websocket.send", "bytes": bytes(PIECE)})
            sent += 1

    app = Application(flood)
    async with connected(carrier, app, Settings(ping_interval=None)) as raw:
        await all_blocked()
        assert sent * PIECE < (HELD if carrier is on_tcp else 3 * PIECE)
        for _ in range(MUCH):
            assert await raw.frame() == (2, bytes(PIECE))
        await raw.send(masked(8, close_payload(1000)))
        assert await raw.end() == {"close": 1000}
    assert sent == MUCH
    assert app.end[0] == 1000


async def test_an_application_that_does_not_answer_stalls_the_peer(carrier: Carrier) -> None:
    go_on = anyio.Event()
    accepts = Application()
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        await accepts(scope, receive, send)

    settings = Settings(open_timeout=None, max_handshake_size=PIECE, max_read_ahead=2 * PIECE)
    async with carrier(app, settings) as connect, anyio.create_task_group() as tasks:
        stream = await connect()
        raw = Raw(stream)

        async def shake_hands() -> None:
            assert await raw.handshake("/") == 101
            assert await raw.end() == {"close": 4000}
            await cut(stream)

        async def early() -> None:
            nonlocal sent
            for _ in range(MUCH):
                await raw.send(masked(2, bytes(PIECE)))
                sent += 1
            await raw.send(masked(8, close_payload(4000)))

        tasks.start_soon(shake_hands)
        await all_blocked()
        tasks.start_soon(early)
        await all_blocked()
        assert sent * PIECE < (HELD if carrier is on_tcp else 8 * PIECE)
        go_on.set()
        await accepts.ended.wait()
    assert accepts.received == [bytes(PIECE)] * MUCH


async def test_a_blocked_send_ends_with_the_connection(carrier: Carrier) -> None:
    raised: list[Exception] = []

    async def flood(receive: Any, send: Any) -> None:
        try:
            for _ in range(MUCH):
                await send({"type": "websocket.send", "bytes": bytes(PIECE)})
        except ClientDisconnected as exc:
            raised.append(exc)

    app = Application(flood)
    async with carrier(app, Settings(ping_interval=None)) as connect:
        stream = await connect()
        assert await Raw(stream).handshake("/") == 101
        await all_blocked()
        assert raised == []
        await cut(stream)
        await app.ended.wait()
    assert len(raised) == 1
    assert app.end[0] == 1006


async def test_an_application_that_does_not_receive_stalls_the_peer(carrier: Carrier) -> None:
    go_on = anyio.Event()
    sent = 0

    async def wait(receive: Any, send: Any) -> None:
        await go_on.wait()

    app = Application(wait)
    settings = Settings(ping_interval=None, max_read_ahead=2 * PIECE)
    async with connected(carrier, app, settings) as raw, anyio.create_task_group() as tasks:

        async def flood() -> None:
            nonlocal sent
            for _ in range(MUCH):
                await raw.send(masked(2, bytes(PIECE)))
                sent += 1
            await raw.send(masked(8, close_payload(4000)))

        tasks.start_soon(flood)
        await all_blocked()
        assert sent * PIECE < (HELD if carrier is on_tcp else 8 * PIECE)
        go_on.set()
        assert await raw.end() == {"close": 4000}
    assert app.received == [bytes(PIECE)] * MUCH
    assert app.end[0] == 4000


class Plain:
    """A client's socket, whose end is seen at once; on uvloop, a stream would send first."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setblocking(False)

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._sock)

    async def receive(self) -> bytes:
        await anyio.wait_readable(self._sock)
        return self._sock.recv(65_536)

    async def aclose(self) -> None:
        # The end is a reset.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # uvloop would keep it open that has waited for it.
        os.close(self._sock.detach())


async def test_a_stalled_peer_that_resets_is_disconnected(carrier: Carrier) -> None:
    go_on = anyio.Event()

    async def wait(receive: Any, send: Any) -> None:
        await go_on.wait()

    app = Application(wait)
    settings = Settings(ping_interval=None, close_timeout=None, max_read_ahead=2 * PIECE)
    async with carrier(app, settings) as connect:
        stream: Any = await connect()
        if carrier is on_tcp:
            port = stream.extra(SocketAttribute.remote_port)
            await cut(stream)
            stream = Plain(port)
        raw = Raw(stream)
        assert await raw.handshake("/") == 101
        async with anyio.create_task_group() as tasks:

            async def flood() -> None:
                for _ in range(MUCH):
                    await raw.send(masked(2, bytes(PIECE)))

            tasks.start_soon(flood)
            await all_blocked()
            tasks.cancel_scope.cancel()
        await cut(stream)
        go_on.set()
        await app.ended.wait()
    assert set(app.received) <= {bytes(PIECE)}
    assert len(app.received) < MUCH
    assert app.end[0] == 1006


# Cancellation

DESCRIPTORS = Path("/proc/self/fd")


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="this system does not list descriptors")
async def test_a_host_that_is_cancelled_leaves_nothing() -> None:
    running: set[str] = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "lifespan")
        running.add(path)
        try:
            if path == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
            elif path != "/unanswered":
                await send(ACCEPT)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                while path == "/floods":
                    await send({"type": "websocket.send", "bytes": bytes(PIECE)})
                while True:
                    await receive()
        finally:
            running.discard(path)

    def descriptors() -> int:
        return len(list(DESCRIPTORS.iterdir()))

    # What event loops open once, when it is needed first, they are to have before.
    async with connected(on_tcp, Application()) as raw:
        await raw.send(masked(8))
    await all_blocked()
    before = descriptors()
    streams = []
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve_app, app, "127.0.0.1", 0))
        for path in ("/waits", "/floods", "/unanswered"):
            stream = await anyio.connect_tcp("127.0.0.1", server.port)
            streams.append(stream)
            await stream.send(request().replace(b" / ", f" {path} ".encode()))
        await until(lambda: len(running) == 4)
        await all_blocked()
        tasks.cancel_scope.cancel()
    assert running == set()
    for stream in streams:
        await cut(stream)
    # Event loops close sockets a turn later.
    await until(lambda: descriptors() == before)
