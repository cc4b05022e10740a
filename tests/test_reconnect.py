"""`reconnect`: the waits on trio's mock clock, the connections on sockets and every backend."""

from __future__ import annotations

import gc
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from asyncwebsockets import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    HandshakeError,
    HandshakeTimeout,
    InvalidHandshake,
    Reconnecting,
    Reject,
    Rejected,
    Request,
    Settings,
    Websocket,
    open_websocket_server,
    reconnect,
    serve,
)
from asyncwebsockets._reconnect import _retry_after
from asyncwebsockets.events import AcceptConnection
from asyncwebsockets.handshake import ServerHandshake

from .conftest import Stream, memory_pair, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = [pytest.mark.anyio]

URL = "ws://server.example/"


class Network:
    """What connecting comes to, one outcome after the other; the last one for ever after."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self.tasks = tasks
        self.outcomes: list[Any] = []
        self.attempts: list[float] = []
        self.requests: list[Request] = []
        self.codes: list[int | None] = []

    async def connect(self, host: str, port: int) -> Stream:
        assert (host, port) == ("server.example", 80)
        self.attempts.append(anyio.current_time())
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        near, far = memory_pair()
        self.tasks.start_soon(outcome, self, far)
        return near

    @property
    def waits(self) -> list[float]:
        return [
            later - earlier
            for earlier, later in zip(self.attempts, self.attempts[1:], strict=False)
        ]


def open_for(seconds: float, code: int | None = None) -> Callable[[Network, Stream], Any]:
    """A server that closes with the code after a while, or leaves without one."""

    async def run(network: Network, stream: Stream) -> None:
        async def note(request: Request) -> bool:
            network.requests.append(request)
            return True

        async with open_websocket_server(stream, note) as ws:
            with anyio.move_on_after(seconds):
                await ws.wait_closed()
            if ws.close_code is None:
                if code is None:
                    await ws.abort()
                else:
                    await ws.close(code, "so long")
            network.codes.append(ws.close_code)

    return run


def answering(status: int, *headers: tuple[str, str]) -> Callable[[Network, Stream], Any]:
    async def run(network: Network, stream: Stream) -> None:
        async def no(request: Request) -> Reject:
            network.requests.append(request)
            return Reject(status, headers)

        with suppress(Rejected):
            async with open_websocket_server(stream, no):
                pytest.fail("a rejected connection was opened")

    return run


def saying(data: bytes) -> Callable[[Network, Stream], Any]:
    async def run(network: Network, stream: Stream) -> None:
        await stream.receive()
        if data:
            await stream.send(data)
        await stream.aclose()

    return run


async def silent(network: Network, stream: Stream) -> None:
    with suppress(anyio.EndOfStream):
        while True:
            await stream.receive()


async def mute(network: Network, stream: Stream) -> None:
    """A server that shakes hands and then says nothing, not even Close."""
    server = ServerHandshake(max_size=None)
    server.receive_data(await stream.receive())
    await stream.send(server.accept(AcceptConnection(), [])[0])
    await silent(network, stream)


REFUSED = ConnectionRefusedError(111, "refused")


class OnMockClock:
    """The tests whose subject is how long it waits."""

    @pytest.fixture
    def anyio_backend(self) -> Any:
        return ("trio", {"clock": MockClock(autojump_threshold=0)})

    @pytest.fixture
    async def network(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
        async with anyio.create_task_group() as tg:
            network = Network(tg)
            monkeypatch.setattr(anyio, "connect_tcp", network.connect)
            yield network
            tg.cancel_scope.cancel()

    @pytest.fixture
    def longest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have each wait be as long as it may."""

        def uniform(low: float, high: float) -> float:
            assert low == 0
            return high

        monkeypatch.setattr("random.uniform", uniform)


class TestWaits(OnMockClock):
    @pytest.mark.usefixtures("longest")
    async def test_they_double_up_to_the_longest(self, network: Network) -> None:
        network.outcomes = [*[REFUSED] * 9, open_for(1)]
        async with reconnect(URL) as connections:
            await anext(connections)
        assert network.waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])

    @pytest.mark.usefixtures("longest")
    async def test_their_bounds_are_the_users(self, network: Network) -> None:
        network.outcomes = [*[REFUSED] * 5, open_for(1)]
        async with reconnect(URL, initial_delay=0.5, max_delay=3) as connections:
            await anext(connections)
        assert network.waits == pytest.approx([0.5, 1, 2, 3, 3])

    async def test_thousands_of_failures_are_no_overflow(self, network: Network) -> None:
        network.outcomes = [*[REFUSED] * 2500, open_for(1)]
        async with reconnect(URL, initial_delay=0.1, max_delay=1) as connections:
            await anext(connections)
        assert len(network.attempts) == 2501
        assert max(network.waits) <= 1

    async def test_they_are_random_from_zero_on(self, network: Network) -> None:
        network.outcomes = [*[REFUSED] * 400, open_for(1)]
        async with reconnect(URL, initial_delay=60) as connections:
            await anext(connections)
        # That one of these fails by chance has a probability of 0.9 ** 400, 5e-19.
        assert min(network.waits) < 6
        assert max(network.waits) > 54
        assert all(0 <= wait <= 60 for wait in network.waits)

    @pytest.mark.usefixtures("longest")
    async def test_a_connection_that_lasted_starts_them_anew(self, network: Network) -> None:
        network.outcomes = [REFUSED, REFUSED, open_for(60), open_for(59), open_for(59), open_for(1)]
        waits = []
        async with reconnect(URL) as connections:
            async for ws in connections:
                waits.append(anyio.current_time())
                await ws.wait_closed()
                waits.append(anyio.current_time())
                if len(waits) == 8:
                    break
        # Each time from the end of one connection to the beginning of the next.
        between = [b - a for a, b in zip(waits[1::2], waits[2::2], strict=False)]
        assert between == pytest.approx([1, 2, 4])
        assert network.waits[:2] == [1, 2]

    @pytest.mark.usefixtures("longest")
    @pytest.mark.parametrize(("code", "waits"), [(1000, [1, 1, 1]), (1012, [1, 2, 4])])
    async def test_a_normal_closure_starts_them_anew(
        self, network: Network, code: int, waits: list[float]
    ) -> None:
        network.outcomes = [open_for(0, code)]
        async with reconnect(URL) as connections:
            async for ws in connections:
                await ws.wait_closed()
                if len(network.attempts) == 4:
                    break
        assert network.waits == pytest.approx(waits)

    async def test_bad_delays(self) -> None:
        for delays in ((-1, 60), (2, 1), (float("nan"), 1)):
            with pytest.raises(ValueError, match="delays"):
                reconnect(URL, initial_delay=delays[0], max_delay=delays[1])

    @pytest.mark.usefixtures("longest")
    @pytest.mark.parametrize(
        ("status", "value", "seconds"),
        [
            (429, "7", 7),
            (503, "120", 120),
            (503, "0", 0),
            (500, "99999999", 3600),
            (503, "9" * 400, 3600),
            (503, "soon", 0),
            (503, "-5", 0),
            (503, "\u0663", 0),
            (503, "Fri, 99 Dec 1999 23:59:59 GMT", 0),
            (503, "Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ],
    )
    async def test_retry_after_is_waited_for_as_well(
        self, network: Network, status: int, value: str, seconds: float
    ) -> None:
        field = f"Retry-After: {value}\r\n".encode()
        answer = b"HTTP/1.1 %d No\r\n%sContent-Length: 0\r\n\r\n" % (status, field)
        network.outcomes = [saying(answer), open_for(1)]
        async with reconnect(URL) as connections:
            await anext(connections)
        assert network.waits == pytest.approx([seconds + 1])

    @pytest.mark.usefixtures("longest")
    async def test_retry_after_as_a_date(self, network: Network) -> None:
        date = formatdate(time.time() + 100, usegmt=True)
        network.outcomes = [answering(503, ("Retry-After", date)), open_for(1)]
        async with reconnect(URL) as connections:
            await anext(connections)
        # The date has whole seconds, and a slow machine has used some.
        assert 30 < network.waits[0] <= 101


@given(
    st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]))
    | st.lists(
        st.sampled_from(["Fri,", "31", "Dec", "1999", "99999", "23:59:59", "GMT", "-0000", "+9999"])
        | st.sampled_from(["0", "-1", "1e5", "nan", "inf", "\xb2", "Feb", ":", "25:61:61"]),
        max_size=7,
    ).map(" ".join)
)
def test_any_retry_after_is_a_bounded_wait(value: str) -> None:
    rejected = Rejected(503, [(b"retry-after", value.encode("latin-1"))])
    assert 0 <= _retry_after(rejected) <= 3600


class TestErrors(OnMockClock):
    @pytest.mark.parametrize(
        "error",
        [
            socket.gaierror(-2, "Name or service not known"),
            REFUSED,
            OSError(113, "No route to host"),
            TimeoutError(),
            ssl.SSLError(1, "internal error"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_passing_ones(self, network: Network, error: Exception) -> None:
        network.outcomes = [error, error, open_for(1)]
        async with reconnect(URL) as connections:
            await anext(connections)
        assert len(network.attempts) == 3

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
    async def test_passing_rejections(self, network: Network, status: int) -> None:
        network.outcomes = [answering(status), open_for(1)]
        async with reconnect(URL) as connections:
            await anext(connections)
        assert len(network.attempts) == 2

    @pytest.mark.parametrize("data", [b"", b"HTTP/1.1 101 Swi"])
    async def test_a_server_that_leaves_in_the_handshake(
        self, network: Network, data: bytes
    ) -> None:
        network.outcomes = [saying(data), silent, open_for(1)]
        errors = []

        async def decide(error: Exception, delay: float | None) -> float | None:
            errors.append(type(error))
            return delay

        async with reconnect(URL, decide=decide) as connections:
            await anext(connections)
        assert errors == [HandshakeError, HandshakeTimeout]

    @pytest.mark.parametrize("status", [200, 300, 400, 401, 403, 404, 407, 426])
    async def test_final_rejections(self, network: Network, status: int) -> None:
        network.outcomes = [answering(status)]
        async with reconnect(URL) as connections:
            with pytest.raises(Rejected) as caught:
                await anext(connections)
        assert caught.value.status == status
        assert len(network.attempts) == 1

    @pytest.mark.parametrize(
        "error",
        [ssl.SSLCertVerificationError(1, "expired"), ValueError("no"), KeyError("a defect")],
        ids=lambda error: type(error).__name__,
    )
    async def test_final_ones(self, network: Network, error: Exception) -> None:
        network.outcomes = [error]
        with pytest.raises(type(error)) as caught:
            async for _ in reconnect(URL):
                pytest.fail("a connection came")
        assert caught.value is error
        assert len(network.attempts) == 1

    async def test_an_answer_that_is_none_and_a_url_that_is_none(self, network: Network) -> None:
        network.outcomes = [saying(b"SSH-2.0-OpenSSH\r\n\r\n")]
        with pytest.raises(InvalidHandshake):
            await anext(reconnect(URL))
        with pytest.raises(ValueError, match="scheme"):
            await anext(reconnect("http://server.example/"))
        assert len(network.attempts) == 1


class TestDeciding(OnMockClock):
    async def test_it_may_try_again_at_once_with_other_headers(self, network: Network) -> None:
        network.outcomes = [answering(401), open_for(1)]
        headers = {"Authorization": "Bearer old"}

        async def decide(error: Exception, delay: float | None) -> float | None:
            assert isinstance(error, Rejected)
            assert delay is None
            headers["Authorization"] = "Bearer new"
            return 0

        async with reconnect(URL, headers, decide=decide) as connections:
            await anext(connections)
        assert network.waits == [0]
        assert [request.header("Authorization") for request in network.requests] == [
            "Bearer old",
            "Bearer new",
        ]

    async def test_headers_that_can_be_read_once_are_kept(self, network: Network) -> None:
        network.outcomes = [answering(503), open_for(1)]
        async with reconnect(URL, iter([("X-A", "b")])) as connections:
            await anext(connections)
        assert [request.header("X-A") for request in network.requests] == ["b", "b"]

    async def test_it_may_give_up(self, network: Network) -> None:
        network.outcomes = [REFUSED]
        delays = []

        async def decide(error: Exception, delay: float | None) -> float | None:
            delays.append(delay)
            return 5 if len(delays) < 3 else None

        with pytest.raises(ConnectionRefusedError) as caught:
            await anext(reconnect(URL, decide=decide))
        assert caught.value is REFUSED
        assert network.waits == [5, 5]
        assert None not in delays

    @pytest.mark.parametrize("code", [1000, 1001, 4001])
    async def test_giving_up_after_a_closing_handshake_ends_the_loop(
        self, network: Network, code: int
    ) -> None:
        network.outcomes = [open_for(1, code)]
        ends = []

        async def decide(error: Exception, delay: float | None) -> None:
            assert isinstance(error, ConnectionClosedOK)
            assert delay is not None
            ends.append((error.code, error.reason))

        turns = 0
        async with reconnect(URL, decide=decide) as connections:
            async for ws in connections:
                turns += 1
                await ws.wait_closed()
        assert turns == 1
        assert ends == [(code, "so long")]

    async def test_giving_up_after_a_loss_raises_it(self, network: Network) -> None:
        network.outcomes = [open_for(1)]

        async def decide(error: Exception, delay: float | None) -> None:
            assert isinstance(error, ConnectionClosedError)

        with pytest.raises(ConnectionClosedError) as caught:
            async for ws in reconnect(URL, decide=decide):
                await ws.wait_closed()
        assert caught.value.code == 1006

    async def test_what_it_raises_comes_out(self, network: Network) -> None:
        network.outcomes = [REFUSED]
        defect = KeyError("a defect")

        async def decide(error: Exception, delay: float | None) -> float | None:
            raise defect

        with pytest.raises(KeyError) as caught:
            await anext(reconnect(URL, decide=decide))
        assert caught.value is defect


class TestScope(OnMockClock):
    async def test_each_turn_closes_its_connection(self, network: Network) -> None:
        network.outcomes = [open_for(1000)]
        seen: list[Websocket] = []
        async with reconnect(URL) as connections:
            assert isinstance(connections, Reconnecting)
            async for ws in connections:
                assert all(earlier.close_code == 1000 for earlier in seen)
                seen.append(ws)
                if len(seen) == 1:
                    continue
                if len(seen) == 3:
                    break
            assert seen[-1].close_code is None
        assert [ws.close_code for ws in seen] == [1000] * 3
        await until(lambda: network.codes == [1000] * 3)

    async def test_an_exception_comes_out_and_closes_with_1011(self, network: Network) -> None:
        network.outcomes = [open_for(1000)]
        defect = ConnectionResetError("of the body's own")
        with pytest.raises(ConnectionResetError) as caught:
            async with reconnect(URL) as connections:
                async for _ in connections:
                    raise defect
        assert caught.value is defect
        assert len(network.attempts) == 1
        await until(lambda: network.codes == [1011])

    async def test_the_end_of_a_connection_can_be_suppressed(self, network: Network) -> None:
        network.outcomes = [open_for(1), open_for(1, 1001), open_for(1000)]
        turns = 0
        async with reconnect(URL) as connections:
            async for ws in connections:
                turns += 1
                if turns == 3:
                    break
                with suppress(ConnectionClosed):
                    await ws.receive()
                    pytest.fail("an event came")
        assert turns == 3

    @pytest.mark.parametrize("where", ["connecting", "waiting", "body", "closing"])
    async def test_cancellation(self, network: Network, where: str) -> None:
        outcomes: dict[str, Any] = {
            "connecting": silent,
            "waiting": REFUSED,
            "body": open_for(1000),
            "closing": mute,
        }
        network.outcomes = [outcomes[where]]
        with anyio.move_on_after(5) as scope:
            async with reconnect(URL, initial_delay=60) as connections:
                async for _ in connections:
                    if where == "body":
                        await anyio.sleep_forever()
        assert scope.cancelled_caught
        # The stack of scopes is as it was: this one can be left and entered.
        with anyio.move_on_after(1) as other:
            await anyio.sleep(2)
        assert other.cancelled_caught

    async def test_keepalive_goes_on_while_the_body_sleeps(self, network: Network) -> None:
        network.outcomes = [open_for(1000)]
        settings = Settings(ping_interval=20, ping_timeout=20)
        async with reconnect(URL, settings=settings) as connections:
            async for ws in connections:
                await anyio.sleep(100)
                assert ws.close_code is None
                assert ws.latency is not None
                break

    async def test_a_plain_loop_over_a_stream_that_has_no_socket(self, network: Network) -> None:
        network.outcomes = [open_for(1000)]
        async for ws in reconnect(URL):
            assert ws.close_code is None
            break
        gc.collect()
        assert ws.close_code == 1006

    async def test_it_is_entered_once(self, network: Network) -> None:
        async with reconnect(URL) as connections:
            with pytest.raises(RuntimeError, match="entered before"):
                await connections.__aenter__()
        with pytest.raises(anyio.ClosedResourceError):
            await anext(connections)

    async def test_each_time_out_of_an_attempt_is_its_own(self, network: Network) -> None:
        network.outcomes = [silent, silent, open_for(1)]
        settings = Settings(open_timeout=3)
        start = trio.current_time()
        async with reconnect(URL, settings=settings, initial_delay=0, max_delay=0) as connections:
            await anext(connections)
        assert trio.current_time() - start == pytest.approx(6)


# On sockets


class Server:
    def __init__(self) -> None:
        self.port = 0
        self.codes: list[int | None] = []
        self.open = 0

    async def handle(self, ws: Websocket) -> None:
        self.open += 1
        async for text in ws.iter_text():
            if text == "close":
                await ws.close(1012)
            elif text == "abort":
                await ws.abort()
            else:
                await ws.send(text)

    async def note(self, ws: Websocket) -> None:
        try:
            await self.handle(ws)
        except ConnectionClosedError:
            return
        finally:
            self.open -= 1
            self.codes.append(ws.close_code)


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    noted = Server()
    async with anyio.create_task_group() as tg:

        async def run(task_status: Any) -> None:
            await serve(noted.note, "127.0.0.1", 0, ssl=context, task_status=task_status)

        server = await tg.start(run)
        noted.port = server.port
        yield noted
        await server.close()


@pytest.mark.parametrize("scoped", [True, False], ids=["scoped", "plain"])
async def test_the_loop_over_sockets(scoped: bool) -> None:
    async with serving() as server:
        url = f"ws://127.0.0.1:{server.port}/"
        words = iter(["close", "abort", "close", "abort", "stop"])

        async def loop(connections: Reconnecting) -> None:
            async for ws in connections:
                with suppress(ConnectionClosed):
                    word = next(words)
                    await ws.send("hello")
                    assert await ws.receive_text() == "hello"
                    if word == "stop":
                        return
                    await ws.send(word)
                    await ws.receive()

        if scoped:
            async with reconnect(url, initial_delay=0) as connections:
                await loop(connections)
        else:
            await loop(reconnect(url, initial_delay=0))
            gc.collect()
        await until(lambda: len(server.codes) == 5)
        assert server.codes == [1012, 1006, 1012, 1006, 1000 if scoped else 1006]


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
async def test_a_plain_loop_that_is_left_leaves_no_connection(
    secure: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with serving(server_tls if secure else None) as server:
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{server.port}/"
        connect = partial(reconnect, url, ssl=client_tls if secure else None)
        kept = []
        with anyio.move_on_after(60):
            async for ws in connect():
                kept.append(ws)
                break
        defect = KeyError("of the body's own")
        with pytest.raises(KeyError) as caught:
            async for ws in connect():
                kept.append(ws)
                raise defect
        assert caught.value is defect
        with anyio.CancelScope() as scope:
            async for ws in connect():
                kept.append(ws)
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        gc.collect()
        await until(lambda: server.codes == [1006] * 3)
        assert [ws.close_code for ws in kept] == [1006] * 3
        for ws in kept:
            with pytest.raises(ConnectionClosed):
                await ws.send("x")
        assert server.open == 0


def test_a_plain_loop_that_outlives_its_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    async def main() -> None:
        async with anyio.create_task_group() as tg:
            network = Network(tg)
            network.outcomes = [mute]
            monkeypatch.setattr(anyio, "connect_tcp", network.connect)
            kept.append(reconnect(URL))
            assert (await anext(kept[0])).close_code is None
            tg.cancel_scope.cancel()

    async def drop() -> None:
        kept.clear()

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
        kept.clear()
        anyio.run(main, backend=backend)
        anyio.run(drop, backend=backend)
    gc.collect()
