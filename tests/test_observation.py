"""What can be known of connections from outside: counts, records, traces, observers."""

from __future__ import annotations

import logging
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import (
    ConnectionClosed,
    HandshakeError,
    HandshakeTimeout,
    Observation,
    Reject,
    Rejected,
    Settings,
    broadcast,
    create_websocket_server,
    open_websocket,
    open_websocket_client,
    serve,
)
from asyncwebsockets._observing import describe
from asyncwebsockets._trace import traced
from asyncwebsockets.codec import CodecError
from asyncwebsockets.events import BytesMessage, TextMessage

from .conftest import cut, memory_pair, until
from .frames import REQUEST, close_payload, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from asyncwebsockets import ConnectionRecord, Request, Server, ServerStatistics, Websocket
    from asyncwebsockets.observation import Connection

    from .conftest import Pairs

pytestmark = pytest.mark.anyio

LARGE = bytes(200_000)


async def wait_for_end(ws: Websocket) -> None:
    async for _ in ws:
        pass


@asynccontextmanager
async def serving(handler: Any = wait_for_end, **kwargs: Any) -> AsyncIterator[Server]:
    async with anyio.create_task_group() as tg:
        if "uds" not in kwargs:
            kwargs = {"host": "127.0.0.1", "port": 0, **kwargs}
        server: Server = await tg.start(partial(serve, handler, **kwargs))
        yield server
        await server.close(grace=5)


# Counts


async def test_both_sides_count_the_same(codec: Any, pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        await client.send("text")
        await client.send(b"in ", final=False)
        await client.send(b"two", final=True)
        assert await server.receive_text() == "text"
        assert await server.receive_bytes() == b"in two"
        here, there = client.statistics, server.statistics
        # Three headers with masks, and what is in them.
        assert here.bytes_sent == there.bytes_received == 3 * 6 + 10
        assert (here.messages_sent, there.messages_received) == (2, 2)
        assert (here.messages_received, there.messages_sent) == (0, 0)


async def test_large_messages_and_pings_count_on_every_way(codec: Any, pairs: Pairs) -> None:
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:
        for source, sink in ((client, server), (server, client)):
            tg.start_soon(source.send, LARGE)
            assert await sink.receive_bytes() == LARGE
            await broadcast([source], "to many")
            assert await sink.receive_text() == "to many"
        tg.start_soon(wait_for_end, server)
        with anyio.CancelScope() as scope:
            tg.start_soon(wait_for_end, client)
            await client.ping(b"1")
            await server.ping(b"2")
            scope.cancel()
        here, there = client.statistics, server.statistics
        assert here.bytes_sent == there.bytes_received == 14 + len(LARGE) + 6 + 7 + 7 + 7
        assert there.bytes_sent == here.bytes_received == 10 + len(LARGE) + 2 + 7 + 3 + 3
        assert (here.messages_sent, here.messages_received) == (2, 2)
        assert (there.messages_sent, there.messages_received) == (2, 2)
        assert (here.pings_sent, here.pings_received) == (1, 1)
        assert (there.pings_sent, there.pings_received) == (1, 1)
        tg.cancel_scope.cancel()


async def test_the_duration_ends_with_the_connection(pairs: Pairs) -> None:
    async with pairs.connect() as (client, _):
        before = client.statistics
        assert client.statistics.duration >= before.duration >= 0
        await client.close(1000)
        after = client.statistics
        assert client.statistics.duration == after.duration
        assert after.opened_at == pytest.approx(before.opened_at, abs=1)


def totals(statistics: ServerStatistics) -> dict[str, int]:
    """Return what has happened, without what is not."""
    return {
        name: count
        for name, count in asdict(statistics).items()
        if count and not name.startswith(("bytes", "messages", "pings"))
    }


async def send_raw(server: Server, data: bytes) -> None:
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        await stream.send(data)
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await stream.receive()


async def decide(request: Request) -> bool:
    if request.path == "/error":
        raise ValueError("the filter's own")
    return request.path != "/no"


async def health(request: Request) -> Reject | None:
    return Reject(200) if request.path == "/health" else None


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        (REQUEST.replace(b"/path", b"/no"), {"rejected": 1}),
        (REQUEST.replace(b"/path", b"/error"), {"failed": 1}),
        (b"nonsense\r\n\r\n", {"failed": 1}),
        (b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n", {"answered": 1}),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", {"failed": 1}),
        (REQUEST + frame(8, close_payload(1000), masked=True), {"opened": 1}),
    ],
    ids=["rejected", "an error of the filter", "malformed", "plain", "no upgrade", "opened"],
)
async def test_a_server_counts_what_became_of_connections(
    data: bytes, counts: dict[str, int]
) -> None:
    async with serving(filter=decide, on_http=health) as server:
        assert totals(server.statistics) == {}
        await send_raw(server, data)
        await until(lambda: totals(server.statistics) == {"accepted": 1, **counts})


async def test_a_server_counts_those_under_way() -> None:
    settings = Settings(max_connections=2)
    async with serving(settings=settings) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with open_websocket(url) as ws:
            await until(lambda: server.statistics.open == 1)
            async with await anyio.connect_tcp("127.0.0.1", server.port):
                await until(lambda: server.statistics.handshaking == 1)
                with pytest.raises(Rejected):
                    async with open_websocket(url):
                        pytest.fail("it was refused")
                now = server.statistics
                assert (now.accepted, now.opened, now.refused) == (3, 1, 1)
            await until(lambda: server.statistics.failed == 1)
            await ws.send("hello")
            await until(lambda: server.statistics.messages_received == 1)
        await until(lambda: not server.statistics.open)
        # What has ended is part of the sums.
        assert server.statistics.messages_received == 1
        assert server.statistics.bytes_received == 11 + 8
        assert server.statistics.bytes_sent == 4
        assert totals(server.statistics) == {"accepted": 3, "opened": 1, "refused": 1, "failed": 1}


async def test_a_server_that_closes_has_rejected_handshakes() -> None:
    async with serving() as server, await anyio.connect_tcp("127.0.0.1", server.port):
        await until(lambda: server.statistics.handshaking == 1)
        await server.close()
        assert totals(server.statistics) == {"accepted": 1, "rejected": 1}


# Records of ends


class Told(Observation):
    """An observer of one connection that keeps all it is told."""

    def __init__(self, role: str, request: Request) -> None:
        self.role = role
        self.request = request
        self.calls: list[str] = []
        self.failure: BaseException | None = None
        self.status: int | None = None
        self.record: ConnectionRecord | None = None

    def opened(self, connection: Connection) -> None:
        self.calls.append("opened")
        assert connection.response.status == 101
        assert connection.close_code is None

    def failed(self, error: BaseException, status: int | None) -> None:
        self.calls.append("failed")
        self.failure, self.status = error, status

    def closed(self, record: ConnectionRecord) -> None:
        self.calls.append("closed")
        self.record = record


class Watch:
    """An observer that keeps what it was called for."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def __call__(self, role: str, request: Request) -> Told:
        self.told.append(Told(role, request))
        return self.told[-1]

    def end(self, role: str) -> ConnectionRecord:
        (found,) = (each for each in self.told if each.role == role)
        assert found.calls == ["opened", "closed"]
        assert found.record is not None
        return found.record


async def leave(near: Websocket, far: Websocket) -> None:
    await near.close(4000, "bye")


async def break_a_rule(near: Websocket, far: Websocket) -> None:
    # The masks are wrong on either side.
    await near._channel._transport.send(b"\xff\xff")  # type: ignore[attr-defined]
    await near.wait_closed()


async def abort(near: Websocket, far: Websocket) -> None:
    await near.abort()


ENDS = pytest.mark.parametrize(
    ("end", "here", "there"),
    [
        (leave, ("local", 4000, True), ("remote", 4000, True)),
        (break_a_rule, ("remote", 1002, True), ("local", 1002, False)),
        (abort, ("local", 1006, False), (None, 1006, False)),
    ],
)


@ENDS
@pytest.mark.parametrize("role", ["client", "server"])
async def test_who_has_ended_a_connection(
    codec: Any, pairs: Pairs, role: str, end: Any, here: Any, there: Any
) -> None:
    watch = Watch()
    async with pairs.connect(Settings(observer=watch)) as (client, server):
        near, far = (client, server) if role == "client" else (server, client)
        with suppress(ConnectionClosed):
            await end(near, far)
        with suppress(ConnectionClosed):
            await wait_for_end(far)
    found = [watch.end(side) for side in (role, "server" if role == "client" else "client")]
    assert [(each.closed_by, each.close_code, each.clean) for each in found] == [here, there]


async def test_who_is_silent_is_dropped_by_this_side() -> None:
    watch = Watch()
    settings = Settings(observer=watch, ping_interval=0.01, ping_timeout=0.01, close_timeout=0.01)
    near, far = memory_pair()
    await near.send(REQUEST)
    ws = await create_websocket_server(far, settings=settings)
    with pytest.raises(ConnectionClosed):
        await ws.receive()
    record = watch.end("server")
    assert (record.closed_by, record.close_code, record.clean) == ("local", 1011, False)
    assert record.statistics.pings_sent == 1


async def test_a_line_that_is_cut_is_lost_on_both_sides(pairs: Pairs) -> None:
    watch = Watch()
    near, far = await pairs.streams()
    async with anyio.create_task_group() as tg:

        async def serve_one() -> None:
            ws = await create_websocket_server(far, settings=Settings(observer=watch))
            with suppress(ConnectionClosed):
                await wait_for_end(ws)

        tg.start_soon(serve_one)
        await near.send(REQUEST)
        await near.receive()
        await cut(near)
    record = watch.end("server")
    assert (record.closed_by, record.close_code, record.clean) == (None, 1006, False)


async def test_a_record_of_each_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asyncwebsockets.connections")
    async with serving(filter=lambda request: chat()) as server:
        address = f"127.0.0.1:{server.port}"
        async with open_websocket(f"ws://{address}/a?secret", subprotocols=["chat"]) as ws:
            await ws.send("hello")
            await ws.close(4000, "a\nb")
    assert {record.name for record in caplog.records} == {"asyncwebsockets.connections"}
    records: list[Any] = sorted(caplog.records, key=lambda record: record.role)
    assert [(r.role, r.closed_by, r.levelname) for r in records] == [
        ("client", "local", "DEBUG"),
        ("server", "remote", "DEBUG"),
    ]
    for record in records:
        assert record.close_code == 4000
        assert record.close_reason == "a\\nb"
        assert record.path == "/a"
        assert record.subprotocol == "chat"
        assert record.clean is True
        assert record.local_address.startswith("127.0.0.1:")
        assert record.remote_address.startswith("127.0.0.1:")
        assert record.duration > 0
        assert record.messages_received + record.messages_sent == 1
        assert "secret" not in str(vars(record))
    client, there = (record.getMessage() for record in records)
    assert client.startswith(f"to {address} /a: closed by this side, 4000 a\\nb; ")
    assert client.endswith(" s, received 7 bytes, 0 messages; sent 22 bytes, 1 messages")
    assert there.startswith("from 127.0.0.1:")
    assert " /a: closed by the peer, 4000 a\\nb; " in there


async def chat() -> str:
    return "chat"


async def test_addresses_are_written_as_usual() -> None:
    assert describe(("::1", 80)) == "[::1]:80"
    assert describe(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert describe("/tmp/a\n") == "/tmp/a\\n"
    assert describe(None) == "-"


# Traces


@pytest.fixture
def frames(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Has frames logged; returns what was."""
    caplog.set_level(logging.DEBUG, "asyncwebsockets.frames")

    def logged() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "asyncwebsockets.frames"]

    return logged


async def test_frames_are_traced_in_both_directions(
    codec: Any, pairs: Pairs, frames: Callable[[], list[str]]
) -> None:
    async with pairs.connect() as (client, server):
        await client.send("hello")
        assert await server.receive_text() == "hello"
        await broadcast([server], b"x" * 70_000)
        assert len(await client.receive_bytes()) == 70_000
        assert client.statistics.bytes_received == 70_010
        await client.ping(b"hello")
        await client.close(4000, "hello")
    lines = frames()
    assert not any("hello" in line for line in lines)
    for role, way, back in (("client", "sent", "received"), ("server", "received", "sent")):
        mine = [line.partition(": ")[2] for line in lines if line.startswith(role)]
        assert mine == [
            f"{way} text, fin, 5 bytes",
            f"{back} binary, fin, 70000 bytes",
            f"{way} ping, fin, 5 bytes",
            f"{back} pong, fin, 5 bytes",
            f"{way} close 4000, fin, 7 bytes",
            f"{back} close 4000, fin, 7 bytes",
        ]


WIRE = [
    (frame(1, b"a" * 5, masked=True, fin=False), "text, 5 bytes"),
    (frame(9, b"", masked=True), "ping, fin, 0 bytes"),
    (frame(0, b"b" * 300, masked=True), "continuation, fin, 300 bytes"),
    (frame(2, b"c" * 70_000, masked=True), "binary, fin, 70000 bytes"),
    (frame(10, b"d", masked=True), "pong, fin, 1 bytes"),
    (frame(8, close_payload(1001, "e"), masked=True), "close 1001, fin, 3 bytes"),
]


@pytest.mark.parametrize("size", [1, 3, 1000, 100_000])
def test_what_comes_in_pieces_is_traced_once(
    codec: Any, frames: Callable[[], list[str]], size: int
) -> None:
    made = traced(codec(client=False), "server", ("h", 1))
    data = b"".join(wire for wire, _ in WIRE)
    received: list[Any] = []
    for start in range(0, len(data), size):
        made.receive_data(data[start : start + size])
        while (events := made.next_events()[0]) != []:
            received += [event for event, _ in events]
    assert frames() == [f"server, h:1: received {line}" for _, line in WIRE]
    assert sum(isinstance(e, TextMessage | BytesMessage) and e.message_finished for e in received)
    assert made.counts == (len(data), 0, 2, 0, 1, 0)


async def test_a_broken_rule_is_the_last_that_is_traced(
    codec: Any, pairs: Pairs, frames: Callable[[], list[str]]
) -> None:
    near, far = await pairs.streams()
    async with anyio.create_task_group() as tg:

        async def serve_one() -> None:
            ws = await create_websocket_server(far, settings=Settings(close_timeout=0.1))
            with suppress(ConnectionClosed):
                await wait_for_end(ws)

        tg.start_soon(serve_one)
        await near.send(REQUEST)
        await near.receive()
        # An opcode that there is not, and an empty Close; then no frames at all.
        await near.send(frame(3, b"", masked=True, rsv=7) + frame(8, masked=True))
        await near.receive()
        with suppress(anyio.BrokenResourceError, OSError):
            await near.send(frame(9, masked=True))
        await cut(near)
    lines = [line.partition(": ")[2] for line in frames()]
    assert lines[:2] == [
        "received opcode 3, fin, rsv1, rsv2, rsv3, 0 bytes",
        "received close, fin, 0 bytes",
    ]
    assert lines[2].startswith("sent close 1002, fin, ")
    assert lines[3:] == []


async def test_each_frame_is_traced_that_is_repeated_and_none_behind_a_broken_rule(
    codec: Any, frames: Callable[[], list[str]]
) -> None:
    made = traced(codec(client=False), "server", None)
    assert made.repeat(made.encode_message(b"a", True)) == frame(2, b"a", masked=False)
    made.receive_data(frame(3, masked=True))
    with pytest.raises(CodecError):
        made.next_events()
    made.receive_data(frame(9, masked=True))
    assert frames() == [
        "server, -: sent binary, fin, 1 bytes",
        "server, -: sent binary, fin, 1 bytes",
        "server, -: received opcode 3, fin, 0 bytes",
    ]


async def test_what_is_not_traced_costs_nothing(codec: Any) -> None:
    made = codec(client=False)
    assert traced(made, "server", None) is made


# Observers


async def test_header_fields_go_with_the_request_unless_they_are_there() -> None:
    seen: list[Any] = []

    class Tracing(Observation):
        headers = (("X-Trace", "1"), ("X-Mine", "theirs"), ("x-other", "2"))

    async def look(ws: Websocket) -> None:
        fields = [(name.lower(), value) for name, value in ws.request.headers]
        seen.extend(field for field in fields if field[0].startswith(b"x-"))

    settings = Settings(observer=lambda role, request: Tracing())
    async with serving(look) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with open_websocket(url, {"X-Mine": "ours"}, settings=settings) as ws:
            await wait_for_end(ws)
    assert sorted(seen) == [(b"x-mine", b"ours"), (b"x-other", b"2"), (b"x-trace", b"1")]


async def test_the_users_code_runs_in_what_an_observer_has_activated() -> None:
    active: list[str] = []
    seen: list[tuple[str, list[str]]] = []

    class Activating(Observation):
        @contextmanager
        def _active(self) -> Iterator[None]:
            active.append("it")
            try:
                yield
            finally:
                active.remove("it")

        def activate(self) -> AbstractContextManager[object]:
            return self._active()

    async def filter(request: Request) -> bool:
        seen.append(("filter", list(active)))
        return True

    async def handler(ws: Websocket) -> None:
        seen.append(("handler", list(active)))

    settings = Settings(observer=lambda role, request: Activating())
    async with serving(handler, filter=filter, settings=settings) as server:
        async with open_websocket(f"ws://127.0.0.1:{server.port}/") as ws:
            await wait_for_end(ws)
    assert seen == [("filter", ["it"]), ("handler", ["it"])]
    assert active == []


@pytest.mark.parametrize(
    ("path", "error", "status"),
    [("/no", Rejected, 403), ("/error", ValueError, 500), ("/slow", HandshakeTimeout, 503)],
)
async def test_an_observer_is_told_of_handshakes_that_came_to_nothing(
    path: str, error: type[Exception], status: int
) -> None:
    watch = Watch()

    async def filter(request: Request) -> bool:
        if path == "/slow":
            await anyio.sleep_forever()
        return await decide(request)

    settings = Settings(observer=watch, open_timeout=0.05 if path == "/slow" else 10)
    async with serving(filter=filter, settings=settings) as server:
        with pytest.raises(Rejected):
            async with open_websocket(
                f"ws://127.0.0.1:{server.port}{path}", settings=Settings(observer=watch)
            ):
                pytest.fail("it was rejected")
        await until(lambda: all(told.calls for told in watch.told))
    client, there = watch.told
    assert (client.role, client.calls, client.status) == ("client", ["failed"], status)
    assert isinstance(client.failure, Rejected)
    assert (there.role, there.calls, there.status) == ("server", ["failed"], status)
    assert isinstance(there.failure, error)


async def test_a_client_that_finds_nobody_or_gives_up_is_told_of() -> None:
    watch = Watch()
    settings = Settings(observer=watch)
    near, far = memory_pair()
    await far.aclose()
    with pytest.raises(HandshakeError):
        async with open_websocket_client(near, "h", "/", settings=settings):
            pytest.fail("nobody has answered")
    near, _ = memory_pair()
    with anyio.move_on_after(0.01):
        async with open_websocket_client(near, "h", "/", settings=settings):
            pytest.fail("nobody has answered")
    lost, cancelled = watch.told
    assert (lost.calls, lost.status, type(lost.failure)) == (["failed"], None, HandshakeError)
    assert (cancelled.calls, cancelled.status) == (["failed"], None)
    assert isinstance(cancelled.failure, anyio.get_cancelled_exc_class())


async def test_no_connection_need_be_observed() -> None:
    asked: list[str] = []

    def observer(role: str, request: Request) -> None:
        asked.append(f"{role} {request.path}")

    settings = Settings(observer=observer)
    async with serving(settings=settings) as server:
        async with open_websocket(f"ws://127.0.0.1:{server.port}/a", settings=settings):
            pass
    assert asked == ["client /a", "server /a"]


class Faulty(Observation):
    """Fails wherever it can."""

    headers = (("not a name", "1"),)

    def _fail(self, *args: object) -> Any:
        raise RuntimeError("the observer's own")

    activate = _fail
    opened = _fail  # type: ignore[assignment]
    closed = _fail  # type: ignore[assignment]
    failed = _fail  # type: ignore[assignment]


async def test_an_observer_that_fails_harms_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(role: str, request: Request) -> Observation:
        if request.path == "/first":
            raise RuntimeError("the observer's own")
        return Faulty()

    settings = Settings(observer=faulty)
    async with serving(filter=decide, settings=settings) as server:
        for path in ("/first", "/second", "/no"):
            with suppress(Rejected):
                async with open_websocket(
                    f"ws://127.0.0.1:{server.port}{path}", settings=settings
                ) as ws:
                    await ws.send("hello")
        await until(lambda: server.statistics.rejected == 1 and not server.statistics.open)
        assert server.statistics.messages_received == 2
    assert all(record.levelname == "ERROR" for record in caplog.records)
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("the observer's header fields cannot be sent") == 2
    # Both sides' for /first and in opened, closed and failed, and thrice in activate.
    assert messages.count("an observer failed") == 2 + 2 + 2 + 2 + 3
    assert len(messages) == 13
