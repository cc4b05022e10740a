"""Cancelled at any await, a connection goes on cleanly, or is closed; nothing is left behind."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.lowlevel import checkpoint
from wsproto.connection import ConnectionState

from asgi_bridge import WebsocketApp, open_websocket_app, serve_app
from asyncwebsockets import (
    ConnectionClosed,
    ConnectionClosedError,
    HandshakeError,
    Settings,
    Websocket,
    create_websocket_client,
    create_websocket_server,
    open_websocket,
    open_websocket_client,
    open_websocket_server,
    serve,
)
from asyncwebsockets.events import Message
from asyncwebsockets.transport import StreamTransport

from .conftest import Stream, until
from .frames import parse_frame
from .steps import EVERY_STEP, Cut, at_each_step

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from .conftest import Pairs

# The codec awaits nothing.
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(900 if EVERY_STEP else 60),
    # The same lines over and over, which a tracer would make three times as slow.
    pytest.mark.no_cover,
]

SIDES = ["client", "server"]

# With nobody behind who reads, and who finishes what was cut.
ROLES = pytest.mark.parametrize("role", [*SIDES, "client without a scope"])

LARGE = Settings(max_message_size=None, ping_interval=None, close_timeout=3)

# More than is on its way at a time, with the buffers as small as they are here.
BIG = b"x" * (30_000_000 if EVERY_STEP else 3_000_000)

# More than is on its way at a time, whatever the buffers.
HUGE = b"x" * 30_000_000


@dataclass(eq=False)
class Tap(ByteStream):
    """The peer's end of a stream, which keeps what has come and may be slow."""

    inner: Stream
    slow: bool = False
    came: list[bytes] = field(default_factory=list)
    #: What happens when it has read so many bytes; it reads on when that is done.
    pause: tuple[int, Callable[[], Awaitable[object]]] | None = None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if self.slow:
            await checkpoint()
        if self.pause is not None and sum(map(len, self.came)) >= self.pause[0]:
            _, function = self.pause
            self.pause = None
            await function()
        data = await self.inner.receive()
        self.came.append(data)
        return data

    async def send(self, item: bytes) -> None:
        await self.inner.send(item)

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()

    @property
    def extra_attributes(self) -> Any:
        return self.inner.extra_attributes

    def frames(self) -> tuple[list[tuple[int, bytes]], bytes]:
        """The frames that came, and what is no whole one."""
        data = b"".join(self.came).partition(b"\r\n\r\n")[2]
        found = []
        with suppress(IndexError):
            while data:
                first, payload, data = parse_frame(data)
                found.append((first, payload))
        return found, data


class Peer:
    """The other side of a connection under test: it receives all there is."""

    def __init__(self, stream: Stream, role: str, slow: bool) -> None:
        self.tap = Tap(stream, slow)
        self._role = role
        self.websocket: Any = None
        self.open = anyio.Event()
        self.messages: list[str | bytes] = []
        self.error: Exception | None = None

    async def run(self) -> None:
        try:
            async with self._opening() as self.websocket:
                self.open.set()
                async for evt in self.websocket:
                    if isinstance(evt, Message):
                        self.messages.append(evt.data)
        except (ConnectionClosedError, HandshakeError) as exc:
            self.error = exc
        finally:
            self.open.set()

    def _opening(self) -> Any:
        if self._role == "client":
            return open_websocket_client(self.tap, "h", "/", settings=LARGE)
        return open_websocket_server(self.tap, settings=LARGE)


@asynccontextmanager
async def without_a_scope(creating: Awaitable[Websocket]) -> AsyncIterator[Websocket]:
    websocket = await creating
    yield websocket
    await websocket.close(1000, "")


@asynccontextmanager
async def connection(
    pairs: Pairs, role: str, *, slow: bool = False
) -> AsyncIterator[tuple[Websocket, Peer]]:
    """Give this side's end of a connection, and the peer, which is done in the end."""
    near, far = await pairs.streams()
    opening: Any
    if role == "client":
        peer = Peer(far, "server", slow)
        opening = open_websocket_client(near, "h", "/", settings=LARGE)
    elif role == "client without a scope":
        peer = Peer(far, "server", slow)
        opening = without_a_scope(create_websocket_client(near, "h", "/", settings=LARGE))
    else:
        peer = Peer(near, "client", slow)
        opening = open_websocket_server(far, settings=LARGE)
    async with anyio.create_task_group() as tg:
        tg.start_soon(peer.run)
        async with opening as websocket:
            await peer.open.wait()
            sock = websocket.extra(SocketAttribute.raw_socket, None)
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 262_144)
            yield websocket, peer
    if websocket.close_code != 1006:
        assert peer.error is None or websocket.close_code in (1001, 1011)


def judge(peer: Peer, attempted: list[str | bytes], done: list[str | bytes]) -> None:
    """Say whether the peer got what it was to get, once the connection has ended."""
    frames, rest = peer.tap.frames()
    if rest:
        # Half a frame is the last that comes, and not mistaken for anything.
        assert peer.error is not None
    for first, _ in frames:
        assert first & 0x70 == 0
        assert first & 0x0F in (0, 1, 2, 8, 9, 10)
    left = iter(attempted)
    # In order, none twice, and nothing else.
    assert all(message in left for message in peer.messages)
    received = iter(peer.messages)
    assert all(message in received for message in done), "a message was lost"


async def send_another(websocket: Websocket, done: list[str | bytes]) -> None:
    """Send on, which either works or is told."""
    try:
        await websocket.send("another")
    except ConnectionClosed:
        assert websocket.state is not ConnectionState.OPEN
        with pytest.raises(ConnectionClosed):
            await websocket.receive()
    else:
        done.append("another")


@ROLES
@pytest.mark.parametrize("what", ["small", "fragments", "pieces", "tasks"])
async def test_sending(pairs: Pairs, role: str, what: str) -> None:
    await at_each_step(partial(sending, pairs, role, what))


@pytest.mark.parametrize("role", ["client", "client without a scope"])
async def test_sending_to_a_peer_that_reads_slowly(pairs: Pairs, role: str) -> None:
    await at_each_step(partial(sending, pairs, role, "large"))


@ROLES
async def test_a_torn_message_swallows_none_of_those_behind_it(pairs: Pairs, role: str) -> None:
    async with connection(pairs, role) as (websocket, peer):
        cancelled = anyio.Event()

        async def cancel() -> None:
            scope.cancel()
            # The peer reads nothing until that has done all it does.
            await cancelled.wait()

        peer.tap.pause = 300_000, cancel
        with anyio.CancelScope() as scope:
            await websocket.send(HUGE)
        assert scope.cancelled_caught
        cancelled.set()
        for text in ("one", "two", "three"):
            if pairs.on_sockets:
                await websocket.send(text)
            else:
                # A stream does not say how much of it went out.
                with pytest.raises(ConnectionClosedError, match="cancelled half way"):
                    await websocket.send(text)
    if pairs.on_sockets:
        assert peer.messages == [HUGE, "one", "two", "three"]
        assert peer.error is None
    else:
        assert peer.messages == []
        assert isinstance(peer.error, ConnectionClosedError)
        assert peer.error.code == 1006


async def sending(pairs: Pairs, role: str, what: str, cut: Cut) -> None:
    attempted: list[str | bytes]
    done: list[str | bytes] = []
    async with connection(pairs, role, slow=what == "large") as (websocket, peer):

        async def send(data: str | bytes, *fragments: str) -> None:
            for fragment in fragments:
                await websocket.send(fragment, final=False)
            await websocket.send(data)
            done.append("".join(fragments) + data if isinstance(data, str) else data)

        async def small() -> None:
            for number in range(70):
                await send(str(number))

        async def fragmented() -> None:
            await send("3", "1", "2")
            await send("6", "4", "5")

        async def pieces() -> None:
            async with websocket.message() as message:
                await message.send("12")
                await message.send("3")
            done.append("123")

        async def large() -> None:
            await send(BIG)
            await send("behind")

        async def tasks() -> None:
            async with anyio.create_task_group() as tg:
                for text in ("456", "789"):
                    tg.start_soon(send, text[2:], text[0], text[1])
                await send("3", "1", "2")

        functions: dict[str, Any] = {
            "small": ([str(number) for number in range(70)], small),
            "fragments": (["123", "456"], fragmented),
            "pieces": (["123"], pieces),
            "large": ([BIG, "behind"], large),
            "tasks": ([], tasks),
        }
        attempted, function = functions[what]
        await cut.run(function)
        await send_another(websocket, done)
    if what == "tasks":
        # In whichever order.
        assert set(peer.messages) <= {"123", "456", "789", "another"}
        attempted = [message for message in peer.messages if message != "another"]
        done.sort(key=lambda message: (peer.messages + [message]).index(message))
    judge(peer, [*attempted, "another"], done)


@ROLES
@pytest.mark.parametrize("how", ["receive", "iterate", "stream"])
async def test_receiving(pairs: Pairs, role: str, how: str) -> None:
    await at_each_step(partial(receiving, pairs, role, how))


async def receiving(pairs: Pairs, role: str, how: str, cut: Cut) -> None:
    sent = ["one", "t" * 70_000, "three", "four"]
    received: list[str] = []
    pieces: list[str] = []
    async with connection(pairs, role) as (websocket, peer), anyio.create_task_group() as tg:

        async def send() -> None:
            await peer.websocket.send(sent[0])
            for start in range(0, 70_000, 10_000):
                await checkpoint()
                await peer.websocket.send(sent[1][start : start + 10_000], final=start == 60_000)
            await peer.websocket.ping()
            await peer.websocket.send(sent[2])
            await checkpoint()
            await peer.websocket.send(sent[3])

        async def send_all() -> None:
            # What has come of it is counted.
            with suppress(ConnectionClosed):
                await send()

        async def receive() -> None:
            while len(received) < len(sent):
                received.append(await websocket.receive_text())

        async def iterate() -> None:
            async for text in websocket.iter_text():
                received.append(text)
                if len(received) == len(sent):
                    break

        async def stream() -> None:
            while len(received) < len(sent):
                async with websocket.receive_stream() as stream:
                    # Those that came before it was cancelled count.
                    async for piece in stream:
                        pieces.append(str(piece))  # noqa: PERF401
                    received.append("".join(pieces))
                    pieces.clear()

        tg.start_soon(send_all)
        await cut.run({"receive": receive, "iterate": iterate, "stream": stream}[how])
        expected = list(sent)
        if pieces:
            # The rest of a message that was left half read is dropped.
            assert expected[len(received)].startswith("".join(pieces))
            del expected[len(received)]
        try:
            while len(received) < len(expected):
                received.append(await websocket.receive_text())
            await websocket.send("another")
        except ConnectionClosedError as exc:
            # The answer to the ping was cut, and a stream does not say how far it came.
            assert exc.reason == "a send was cancelled half way"
            assert role == "client without a scope"
            assert not pairs.on_sockets
            assert received == expected[: len(received)]
            return
        assert received == expected
    assert peer.messages == ["another"]


@ROLES
async def test_pinging(pairs: Pairs, role: str) -> None:
    async def scenario(cut: Cut) -> None:
        async with connection(pairs, role) as (websocket, peer):

            async def ping() -> None:
                await websocket.ping(b"first")
                await websocket.ping(b"second")

            await cut.run(ping)
            try:
                assert await websocket.ping(b"another") >= 0
                await websocket.send("another")
            except ConnectionClosedError as exc:
                assert exc.reason == "a send was cancelled half way"
                assert role == "client without a scope"
                assert not pairs.on_sockets
                return
        judge(peer, ["another"], ["another"])
        payloads = [payload for first, payload in peer.tap.frames()[0] if first == 0x89]
        assert payloads in ([b"first", b"second", b"another"][n:] for n in range(3)) or (
            payloads == [b"first", b"another"]
        )

    await at_each_step(scenario)


@ROLES
@pytest.mark.parametrize("unread", [False, True])
async def test_closing(pairs: Pairs, role: str, unread: bool) -> None:
    async def scenario(cut: Cut) -> None:
        async with connection(pairs, role) as (websocket, peer):

            async def close() -> None:
                await websocket.send("last")
                await websocket.close(4000, "bye")

            if unread:
                await peer.websocket.send("x")
            await cut.run(close)
            if cut.cancelled and websocket.state is ConnectionState.OPEN:
                # It came before the closing had begun.
                await websocket.close(4000, "bye")
            for _ in range(2):
                await websocket.close()
            assert websocket.state is ConnectionState.CLOSED
            for use in (lambda: websocket.send("x"), websocket.receive, websocket.ping):
                with pytest.raises(ConnectionClosed):
                    await use()
        judge(peer, ["last"], [])
        assert not peer.tap.frames()[1]

    await at_each_step(scenario)


@pytest.mark.parametrize("role", SIDES)
@pytest.mark.parametrize("form", ["open", "create"])
async def test_opening(pairs: Pairs, role: str, form: str) -> None:
    async def accept(request: object) -> bool:
        await checkpoint()
        return True

    async def scenario(cut: Cut) -> None:
        near, far = await pairs.streams()
        ours, theirs = (near, far) if role == "client" else (far, near)
        peer = Peer(theirs, "server" if role == "client" else "client", slow=False)
        created: list[Websocket] = []
        if role == "client":
            opening = open_websocket_client(ours, "h", "/", settings=LARGE)
        else:
            opening = open_websocket_server(ours, accept, settings=LARGE)
        sent: list[str | bytes] = []

        async def use() -> None:
            if form == "open":
                async with opening as websocket:
                    await websocket.send("hello")
                    sent.append("hello")
                    await checkpoint()
                return
            if role == "client":
                websocket = await create_websocket_client(ours, "h", "/", settings=LARGE)
            else:
                websocket = await create_websocket_server(ours, accept, settings=LARGE)
            created.append(websocket)

        async with anyio.create_task_group() as tg:
            tg.start_soon(peer.run)
            await cut.run(use)
            for websocket in created:
                await websocket.close()
            if form == "open":
                with pytest.raises((RuntimeError, HandshakeError)) as caught:
                    async with opening:
                        pytest.fail("it was opened twice")
                assert str(caught.value)
        judge(peer, ["hello"], sent)

    await at_each_step(scenario)


@pytest.mark.parametrize("secure", [False, True])
async def test_opening_by_url(
    secure: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    seen: list[object] = []

    async def handler(websocket: Websocket) -> None:
        async for text in websocket.iter_text():
            await websocket.send(text)

    async with anyio.create_task_group() as tg:
        server = await tg.start(
            partial(serve, handler, "127.0.0.1", 0, ssl=server_tls if secure else None)
        )
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{server.port}/"

        async def scenario(cut: Cut) -> None:
            async def use() -> None:
                async with open_websocket(url, ssl=client_tls if secure else None) as websocket:
                    await websocket.send("hello")
                    seen.append(await websocket.receive_text())

            await cut.run(use)
            # The server's side of it is no longer there, either.
            await until(lambda: not (server.connections or server._handshakes or server._count))

        await at_each_step(scenario)
        await server.close()
    assert set(seen) == {"hello"}


class Status:
    """Where a server says that it serves; it may not come to that."""

    def __init__(self) -> None:
        self.servers: list[Any] = []
        self.begun = anyio.Event()

    def started(self, server: Any) -> None:
        self.servers.append(server)
        self.begun.set()


@pytest.mark.parametrize("what", ["close", "serve"])
async def test_draining(what: str, tmp_path: Any) -> None:
    async def handler(websocket: Websocket) -> None:
        async for text in websocket.iter_text():
            await websocket.send(text)

    async def scenario(cut: Cut) -> None:
        path = str(tmp_path / "socket")
        async with anyio.create_task_group() as tg:
            ends: list[Any] = []
            status: Any = Status()

            async def run() -> None:
                if what == "serve":
                    await cut.run(partial(serve, handler, uds=path, task_status=status))
                else:
                    await serve(handler, uds=path, task_status=status)
                status.begun.set()

            async def client() -> None:
                try:
                    async with open_websocket_client(
                        await anyio.connect_unix(path), "h", "/"
                    ) as websocket:
                        await websocket.send("hello")
                        ends.append(await websocket.receive_text())
                        await websocket.wait_closed()
                        ends.append(websocket.close_code)
                except (OSError, HandshakeError, ConnectionClosed) as exc:
                    ends.append(exc)

            tg.start_soon(run)
            await status.begun.wait()
            if status.servers:
                async with anyio.create_task_group() as clients:
                    clients.start_soon(client)
                    clients.start_soon(client)
                    await until(lambda: len(ends) >= 2)
                    if what == "close":
                        await cut.run(status.servers[0].close)
                    # Again, or for the first time; it ends where nothing is served any more.
                    await status.servers[0].close()
                assert status.servers[0].connections == frozenset()
                codes = [end for end in ends if isinstance(end, int)]
                assert set(codes) <= {1012, 1001}
                if what == "close":
                    assert codes == [1012, 1012]
        assert not (tmp_path / "socket").exists()

    await at_each_step(scenario)


# The bridge


async def echo_application(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that echoes."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        with suppress(OSError):
            await send({"type": "websocket.send", "text": message["text"]})


async def echo_handler(websocket: Websocket) -> None:
    async for text in websocket.iter_text():
        await websocket.send(text)


@pytest.mark.parametrize("application", ["asgi", "mounted"])
async def test_a_client_in_process(application: str) -> None:
    app = echo_application if application == "asgi" else WebsocketApp(echo_handler)
    seen: list[str] = []

    async def scenario(cut: Cut) -> None:
        async def use() -> None:
            async with open_websocket_app(app, "/") as websocket:
                await websocket.send("hello")
                seen.append(await websocket.receive_text())

        await cut.run(use)

    await at_each_step(scenario)
    assert set(seen) == {"hello"}


@pytest.mark.parametrize("what", ["send", "fragments", "receive", "close"])
async def test_a_mounted_handler(what: str) -> None:
    async def scenario(cut: Cut) -> None:
        done: list[str | bytes] = []
        received: list[str] = []

        async def handler(websocket: Websocket) -> None:
            async def send() -> None:
                for number in range(5):
                    await websocket.send(str(number))
                    done.append(str(number))

            async def fragments() -> None:
                await websocket.send("0", final=False)
                await websocket.send("1", final=False)
                await websocket.send("2")
                done.append("012")

            async def receive() -> None:
                while len(received) < 3:
                    received.append(await websocket.receive_text())

            async def close() -> None:
                await websocket.close(4000)

            functions = {"send": send, "fragments": fragments, "receive": receive, "close": close}
            await cut.run(functions[what])
            if what == "close":
                await websocket.close(4000)
                with pytest.raises(ConnectionClosed):
                    await websocket.send("x")
                return
            while what == "receive" and len(received) < 3:
                received.append(await websocket.receive_text())
            await send_another(websocket, done)

        messages: list[str | bytes] = []
        async with open_websocket_app(WebsocketApp(handler), "/") as client:
            for number in range(3 if what == "receive" else 0):
                await client.send(str(number))
            with suppress(ConnectionClosedError):
                # Those that came before the connection was lost count.
                async for text in client.iter_text():
                    messages.append(text)  # noqa: PERF401
        attempted = {"send": ["0", "1", "2", "3", "4"], "fragments": ["012"]}.get(what, [])
        left: Any = iter([*attempted, "another"])
        assert all(message in left for message in messages)
        got = iter(messages)
        assert all(message in got for message in done)
        assert what != "receive" or received == ["0", "1", "2"]

    await at_each_step(scenario)


async def test_a_hosted_application_that_is_cancelled_within() -> None:
    async def scenario(cut: Cut) -> None:
        done: list[str] = []
        received: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept"})

            async def talk() -> None:
                for number in range(3):
                    received.append((await receive())["text"])
                    await send({"type": "websocket.send", "text": str(number)})
                    done.append(str(number))

            await cut.run(talk)
            while len(received) < 3:
                received.append((await receive())["text"])
            await send({"type": "websocket.send", "text": "another"})
            done.append("another")

        messages: list[str] = []
        async with open_websocket_app(app, "/", lifespan="off") as client:
            for number in range(3):
                await client.send(str(number))
            messages.extend([text async for text in client.iter_text()])
        assert received == ["0", "1", "2"]
        left = iter(["0", "1", "2", "another"])
        assert all(message in left for message in messages)
        got = iter(messages)
        assert all(message in got for message in done)

    await at_each_step(scenario)


@pytest.mark.parametrize("application", ["asgi", "mounted"])
async def test_a_host_that_is_cancelled(application: str, tmp_path: Any) -> None:
    app = echo_application if application == "asgi" else WebsocketApp(echo_handler)

    async def scenario(cut: Cut) -> None:
        path = str(tmp_path / "socket")
        status: Any = Status()

        async def run() -> None:
            await cut.run(partial(serve_app, app, uds=path, task_status=status))
            status.begun.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(run)
            await status.begun.wait()
            if status.servers:
                with suppress(OSError, HandshakeError, ConnectionClosed):
                    async with open_websocket_client(
                        await anyio.connect_unix(path), "h", "/"
                    ) as websocket:
                        await websocket.send("hello")
                        assert await websocket.receive_text() == "hello"
                await status.servers[0].close()
        assert not (tmp_path / "socket").exists()

    await at_each_step(scenario)


# The harness itself


@pytest.mark.parametrize("pairs", ["memory"], indirect=True)
async def test_a_transport_that_tears_a_frame_is_found(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tearing(StreamTransport):
        def protect(self) -> None:
            return

        async def _send_taken(self) -> None:
            data = b"".join(self._taken)
            self._taken.clear()
            self._sent_total += len(data)
            self.clogged = False
            for start in range(0, len(data), 65_536):
                await self._stream.send(data[start : start + 65_536])

    monkeypatch.setattr("asyncwebsockets._sockets.StreamTransport", Tearing)
    # What follows is swallowed by the frame that is not whole.
    with pytest.raises(AssertionError, match=r"cancelled in await .*a message was lost"):
        await at_each_step(partial(sending, pairs, "client", "large"))


async def test_what_is_left_behind_is_found() -> None:
    async def leaves_a_socket(cut: Cut) -> None:
        near, far = socket.socketpair()
        await cut.run(checkpoint)
        if cut.cancelled:
            kept.append(near)
        else:
            near.close()
        far.close()

    kept: list[socket.socket] = []
    with pytest.raises(AssertionError, match="a descriptor is left"):
        await at_each_step(leaves_a_socket)
    for sock in kept:
        sock.close()


async def test_a_scope_that_is_left_open_is_found() -> None:
    async def leaves_a_scope(cut: Cut) -> None:
        await cut.run(checkpoint)
        if cut.cancelled:
            anyio.CancelScope(shield=True).__enter__()

    with pytest.raises(AssertionError, match="cancelled in await .*scope"):
        await at_each_step(leaves_a_scope)


async def test_each_await_is_reached() -> None:
    reached = []

    async def scenario(cut: Cut) -> None:
        async def three() -> None:
            for number in range(3):
                reached.append((cut.step, cut.moment, number))
                await checkpoint()

        await cut.run(three)
        # Behind the last await there is nothing to be cancelled.
        last = cut.step == cut.count and cut.moment != "in"
        assert cut.step is None or cut.cancelled or last

    await at_each_step(scenario)
    assert (3, "in", 2) in reached
