"""Keepalive and time-outs, on trio's mock clock over pairs in memory."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from trio.testing import MockClock

from asyncwebsockets import (
    ConnectionClosedError,
    HandshakeTimeout,
    Rejected,
    Settings,
    Websocket,
    WebsocketError,
    create_websocket_server,
    open_websocket_client,
    open_websocket_server,
)
from asyncwebsockets.events import Ping

from .conftest import Stream, memory_pair
from .frames import REQUEST, close_payload, frame, parse_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("codec")]


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@pytest.fixture
def anyio_backend(clock: MockClock) -> Any:
    return ("trio", {"clock": clock})


async def handshake(near: Stream) -> None:
    await near.send(REQUEST)
    while not (await near.receive()).endswith(b"\r\n\r\n"):
        pass


@asynccontextmanager
async def serving(settings: Settings, size: int = 16) -> AsyncIterator[tuple[Stream, Websocket]]:
    """Give a raw client, its handshake done, and our server's end."""
    near, far = memory_pair(size)
    await near.send(REQUEST)
    async with open_websocket_server(far, settings=settings) as ws:
        await near.receive()
        try:
            yield near, ws
        finally:
            await near.aclose()


async def next_frame(stream: Stream) -> tuple[int, bytes]:
    first, payload, rest = parse_frame(await stream.receive())
    assert rest == b""
    return first, payload


async def test_a_silent_peer_is_dropped_after_interval_and_timeout() -> None:
    async with serving(Settings(ping_interval=20, ping_timeout=15)) as (near, ws):
        start = trio.current_time()
        first, _ = await next_frame(near)
        assert first == 0x89
        assert trio.current_time() - start == pytest.approx(20)
        with pytest.raises(ConnectionClosedError, match="keepalive.*ping_timeout=15") as caught:
            await ws.receive()
        assert trio.current_time() - start == pytest.approx(35)
        assert caught.value.code == ws.close_code == 1011
        first, payload = await next_frame(near)
        assert (first, payload[:2]) == (0x88, close_payload(1011))


@pytest.mark.parametrize(("interval", "patience"), [(20, 20), (5, 30), (30, 5), (20, None)])
async def test_a_peer_that_answers_stays(interval: float, patience: float | None) -> None:
    settings = Settings(ping_interval=interval, ping_timeout=patience)
    async with serving(settings) as (near, ws), anyio.create_task_group() as tg:
        pings = 0

        async def answer() -> None:
            nonlocal pings
            while True:
                first, payload = await next_frame(near)
                assert first == 0x89
                pings += 1
                await trio.sleep(4)
                await near.send(frame(10, payload, masked=True))

        tg.start_soon(answer)
        with trio.move_on_after(300):
            await ws.receive()
        assert ws.close_code is None
        assert pings == pytest.approx(300 / interval, abs=1)
        assert ws.latency == pytest.approx(4)
        tg.cancel_scope.cancel()


async def test_pings_go_on_unanswered_where_nobody_judges_by_them() -> None:
    async with serving(Settings(ping_interval=20, ping_timeout=None)) as (near, ws):
        start = trio.current_time()
        pings = []
        for interval in range(1, 20):
            pings.append(await next_frame(near))
            assert trio.current_time() - start == pytest.approx(20 * interval)
        assert {first for first, _ in pings} == {0x89}
        # A late answer is no event for the user either.
        await near.send(frame(10, pings[0][1], masked=True) + frame(10, pings[-1][1], masked=True))
        await near.send(frame(1, b"x", masked=True))
        assert await ws.receive_text() == "x"
        assert ws.close_code is None


async def test_no_pings_pile_up_for_a_peer_that_does_not_read() -> None:
    settings = Settings(ping_interval=20, ping_timeout=None)
    async with serving(settings, size=1) as (near, ws), trio.open_nursery() as nursery:
        nursery.start_soon(ws.send, b"x" * 2_000_000)
        await trio.sleep(2000)
        received = b""
        with trio.move_on_after(10):
            while True:
                received += await near.receive()
        first, payload, rest = parse_frame(received)
        assert (first, len(payload)) == (0x82, 2_000_000)
        first, _, rest = parse_frame(rest)
        assert (first, rest) == (0x89, b"")


@pytest.mark.parametrize(("interval", "patience"), [(20, 20), (5, 30), (30, 5)])
async def test_silence_is_never_longer_than_both(interval: float, patience: float) -> None:
    settings = Settings(ping_interval=interval, ping_timeout=patience)
    async with serving(settings) as (near, ws), anyio.create_task_group() as tg:
        last = 0.0

        async def answer() -> None:
            nonlocal last
            for _ in range(3):
                _, payload = await next_frame(near)
                await near.send(frame(10, payload, masked=True))
                last = trio.current_time()

        tg.start_soon(answer)
        await ws.wait_closed()
        assert ws.close_code == 1011
        assert trio.current_time() - last <= interval + patience + 0.001


async def test_any_message_is_a_sign_of_life() -> None:
    async with serving(Settings(ping_interval=20, ping_timeout=20)) as (near, ws):
        received = 0
        async with anyio.create_task_group() as tg:

            async def talk() -> None:
                for _ in range(30):
                    await trio.sleep(10)
                    await near.send(frame(2, b"x", masked=True))

            async def listen() -> None:
                nonlocal received
                async for _ in ws:
                    received += 1

            tg.start_soon(listen)
            await talk()
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        assert received == 30
        assert ws.close_code is None


async def test_a_slow_handler_is_not_taken_for_a_dead_peer() -> None:
    settings = Settings(ping_interval=20, ping_timeout=20, max_read_ahead=1000)
    async with serving(settings) as (near, ws), anyio.create_task_group() as tg:

        async def flood() -> None:
            for _ in range(100):
                await near.send(frame(2, b"x" * 1000, masked=True))

        tg.start_soon(flood)
        await trio.sleep(500)
        assert ws.close_code is None
        for _ in range(100):
            assert len(await ws.receive_bytes()) == 1000
        # From here on it is the peer that is silent.
        start = trio.current_time()
        await ws.wait_closed()
        assert ws.close_code == 1011
        assert 20 <= trio.current_time() - start <= 60


async def test_a_handler_that_only_sends_notices_a_silent_peer() -> None:
    async with serving(Settings(ping_interval=20, ping_timeout=20)) as (near, ws):
        async with anyio.create_task_group() as tg:

            async def drain() -> None:
                with pytest.raises(anyio.EndOfStream):
                    while True:
                        await near.receive()

            tg.start_soon(drain)
            with pytest.raises(ConnectionClosedError) as caught:
                while True:
                    await ws.send("push")
                    await trio.sleep(1)
            assert caught.value.code == 1011


async def test_a_peer_that_never_reads_is_dropped() -> None:
    async with serving(Settings(ping_interval=20, ping_timeout=20), size=1) as (_, ws):
        start = trio.current_time()
        with pytest.raises(ConnectionClosedError) as caught:
            while True:
                await ws.send(b"x" * 1000)
        assert caught.value.code == 1011
        assert trio.current_time() - start <= 40.2


async def test_without_a_scope_keepalive_runs_while_a_task_receives() -> None:
    near, far = memory_pair()
    await near.send(REQUEST)
    ws = await create_websocket_server(far, settings=Settings(ping_interval=20, ping_timeout=20))
    await near.receive()
    await trio.sleep(100)
    with pytest.raises(ConnectionClosedError, match="keepalive"):
        await ws.receive()
    assert ws.close_code == 1011
    await near.aclose()


async def test_a_keepalive_can_be_switched_off() -> None:
    async with serving(Settings(ping_interval=None)) as (_, ws):
        with trio.move_on_after(10_000):
            await ws.receive()
        assert ws.close_code is None


async def test_pings_of_the_peer_never_fill_the_read_ahead() -> None:
    settings = Settings(ping_interval=None, max_read_ahead=1024)
    async with serving(settings) as (near, ws):
        for number in range(1000):
            await near.send(frame(9, b"%d" % number, masked=True))
            assert await next_frame(near) == (0x8A, b"%d" % number)
            await trio.sleep(20)
        await near.send(frame(1, b"x", masked=True))
        assert await ws.receive_text() == "x"


async def test_a_ping_is_answered_within_a_second_whatever_the_handler_awaits() -> None:
    async with serving(Settings(ping_interval=None)) as (near, ws):
        with trio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:

                async def peer() -> None:
                    for number in range(50):
                        await near.send(frame(9, b"%d" % number, masked=True))
                        with trio.fail_after(1):
                            assert await next_frame(near) == (0x8A, b"%d" % number)
                        await trio.sleep(0.3)
                    await near.send(frame(8, close_payload(1001), masked=True))
                    with trio.fail_after(1):
                        await ws.wait_closed()
                    scope.cancel()

                tg.start_soon(peer)
                while True:
                    with trio.move_on_after(0.1):
                        await ws.receive()
                    await trio.sleep(7)
        assert ws.close_code == 1001


async def test_a_close_that_is_not_answered_ends_after_close_timeout() -> None:
    async with serving(Settings(close_timeout=10, ping_interval=None)) as (near, ws):
        start = trio.current_time()
        await ws.close(4000)
        assert trio.current_time() - start == pytest.approx(10)
        assert ws.close_code == 1006
        with pytest.raises(ConnectionClosedError, match="close_timeout"):
            async for _ in ws:
                pytest.fail("nothing was sent")
        assert await next_frame(near) == (0x88, close_payload(4000, "Connection closed"))
        with pytest.raises(anyio.EndOfStream):
            await near.receive()


async def test_a_close_ends_even_if_the_peer_never_stops_sending() -> None:
    async with serving(Settings(close_timeout=10)) as (near, ws):
        async with anyio.create_task_group() as tg:

            async def flood() -> None:
                with pytest.raises(anyio.BrokenResourceError):
                    while True:
                        await near.send(frame(2, b"x" * 1000, masked=True))
                        await trio.sleep(0.01)

            tg.start_soon(flood)
            start = trio.current_time()
            await ws.close(4000)
            assert trio.current_time() - start == pytest.approx(10)
            # The pipe in memory notices only at its next use.
            await near.receive()


@pytest.mark.parametrize("sent", [b"", REQUEST[:30]])
async def test_a_slow_request_times_out_with_408_if_it_has_begun(sent: bytes) -> None:
    near, far = memory_pair()
    if sent:
        await near.send(sent)
    start = trio.current_time()
    async with anyio.create_task_group() as tg:

        async def read() -> None:
            if sent:
                assert (await near.receive()).startswith(b"HTTP/1.1 408 ")
            else:
                with pytest.raises(anyio.EndOfStream):
                    await near.receive()
            await near.aclose()

        tg.start_soon(read)
        with pytest.raises(HandshakeTimeout) as caught:
            await create_websocket_server(far, settings=Settings(open_timeout=7))
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, WebsocketError)
    assert trio.current_time() - start == pytest.approx(7)


async def test_a_request_that_comes_byte_by_byte_has_no_more_time() -> None:
    near, far = memory_pair()
    start = trio.current_time()
    async with anyio.create_task_group() as tg:

        async def drip() -> None:
            for byte in REQUEST:
                await near.send(bytes([byte]))
                await trio.sleep(0.9)

        async def read() -> None:
            assert (await near.receive()).startswith(b"HTTP/1.1 408 ")
            await near.aclose()
            tg.cancel_scope.cancel()

        tg.start_soon(drip)
        tg.start_soon(read)
        with pytest.raises(HandshakeTimeout):
            await create_websocket_server(far)
        assert trio.current_time() - start == pytest.approx(10)


async def test_a_peer_that_stops_within_a_frame_is_dropped_as_any_silent_one() -> None:
    async with serving(Settings()) as (near, ws):
        message = frame(2, bytes(10), masked=True)

        async def drip() -> None:
            # Whatever comes is a sign of life, for as long as it comes.
            for byte in message[:-1]:
                await near.send(bytes([byte]))
                await trio.sleep(15)

        async with anyio.create_task_group() as tg:
            tg.start_soon(drip)
            with pytest.raises(ConnectionClosedError) as caught:
                await ws.receive()
            stopped = 15 * (len(message) - 2)
            assert stopped + 20 <= trio.current_time() <= stopped + 60.2
            assert caught.value.code == 1011
            tg.cancel_scope.cancel()


async def test_a_reader_that_never_reads_is_dropped_as_a_silent_one() -> None:
    async with serving(Settings(), size=1) as (_, ws):
        start = trio.current_time()
        with pytest.raises(ConnectionClosedError) as caught:
            while True:
                await ws.send(bytes(1000))
        assert caught.value.code == 1011
        assert trio.current_time() - start <= 40.2


async def test_who_sends_to_a_silent_peer_hears_of_its_end_at_once() -> None:
    near, far = socket.socketpair()
    near.sendall(REQUEST)
    with near:
        async with open_websocket_server(far, settings=Settings()) as ws:
            start = trio.current_time()
            # More than what may be on its way.
            with pytest.raises(ConnectionClosedError, match="keepalive") as caught:
                await ws.send(bytes(10_000_000))
            assert caught.value.code == ws.close_code == 1011
            assert trio.current_time() - start == pytest.approx(40)


async def test_a_slow_filter_times_out_with_503() -> None:
    near, far = memory_pair()
    await near.send(REQUEST)

    async def slow(_: object) -> bool:
        await trio.sleep(1000)
        return True

    async with anyio.create_task_group() as tg:

        async def read() -> None:
            assert (await near.receive()).startswith(b"HTTP/1.1 503 ")
            await near.aclose()

        tg.start_soon(read)
        with pytest.raises(HandshakeTimeout):
            await create_websocket_server(far, slow)


async def test_a_server_that_does_not_answer_times_out() -> None:
    near, far = memory_pair()
    start = trio.current_time()
    with pytest.raises(HandshakeTimeout, match="open_timeout=10 s"):
        async with open_websocket_client(near, "h", "/"):
            pytest.fail("nobody answered")
    assert trio.current_time() - start == pytest.approx(10)
    await far.aclose()


async def test_a_rejection_whose_body_never_ends_is_raised_all_the_same() -> None:
    near, far = memory_pair()
    await far.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nbegun")
    with pytest.raises(Rejected) as caught:
        async with open_websocket_client(near, "h", "/"):
            pytest.fail("it was rejected")
    assert (caught.value.status, caught.value.body) == (403, b"begun")
    await far.aclose()


async def test_leaving_on_a_cancellation_does_not_wait() -> None:
    async with serving(Settings(), size=1) as (near, ws):
        pass
    near, far = memory_pair(1)
    await near.send(REQUEST)
    start = trio.current_time()
    with trio.move_on_after(5):
        async with open_websocket_server(far) as ws:
            await near.receive()
            while True:
                await ws.send(b"x" * 1000)
    assert trio.current_time() - start < 5.5
    assert ws.close_code == 1006

    near, far = memory_pair()
    await near.send(REQUEST)
    with trio.move_on_after(5):
        async with open_websocket_server(far) as ws:
            await near.receive()
            await ws.receive()
    first, payload = await next_frame(near)
    assert (first, payload) == (0x88, close_payload(1001))


async def test_the_ping_event_comes_once() -> None:
    async with serving(Settings(ping_interval=None)) as (near, ws):
        await near.send(frame(9, b"one", masked=True))
        assert await ws.receive() == Ping(b"one")
        with trio.move_on_after(5) as scope:
            await ws.receive()
        assert scope.cancelled_caught


async def test_a_handler_that_receives_one_of_many_is_read_for_again() -> None:
    async with serving(Settings(ping_interval=None, max_read_ahead=1024)) as (near, ws):
        for _ in range(8):
            await near.send(frame(2, b"x", masked=True))
        await trio.sleep(1)
        await near.send(frame(9, b"ping", masked=True))
        await trio.sleep(1)
        await ws.receive()
        with trio.fail_after(1):
            assert await next_frame(near) == (0x8A, b"ping")


async def without_a_scope(settings: Settings, size: int = 16) -> tuple[Stream, Websocket]:
    near, far = memory_pair(size)
    box: list[Websocket] = []

    async def serve() -> None:
        box.append(await create_websocket_server(far, settings=settings))

    async with anyio.create_task_group() as tg:
        tg.start_soon(serve)
        await near.send(REQUEST)
        await near.receive()
    return near, box[0]


async def test_without_a_scope_a_slow_handler_is_not_taken_for_a_dead_peer() -> None:
    near, ws = await without_a_scope(Settings(ping_interval=20, ping_timeout=20))
    for _ in range(5):
        await trio.sleep(100)
        await near.send(frame(1, b"x", masked=True))
        while isinstance(await ws.receive(), Ping):
            pass
    assert ws.close_code is None
    await ws.abort()


async def test_without_a_scope_messages_before_a_close_come_at_once() -> None:
    near, ws = await without_a_scope(Settings())
    await near.send(frame(1, b"x", masked=True) + frame(8, close_payload(1000), masked=True))
    start = trio.current_time()
    assert await ws.receive_text() == "x"
    assert trio.current_time() == start
    with pytest.raises(anyio.EndOfStream):
        await ws.receive()
    assert ws.close_code == 1000


async def test_without_a_scope_a_silent_peer_is_noticed_behind_a_blocked_write() -> None:
    near, ws = await without_a_scope(Settings(ping_interval=20, ping_timeout=20), size=0)
    async with anyio.create_task_group() as tg:

        async def write() -> None:
            with pytest.raises(ConnectionClosedError):
                await ws.send("x")

        tg.start_soon(write)
        start = trio.current_time()
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1011
        assert trio.current_time() - start <= 40.2
    await near.aclose()


async def test_without_a_scope_a_ping_reads_while_a_write_is_blocked() -> None:
    near, ws = await without_a_scope(Settings(ping_interval=None), size=0)
    async with anyio.create_task_group() as tg:
        tg.start_soon(ws.send, "x")
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(ws.ping, b"p")
        await anyio.wait_all_tasks_blocked()
        # The peer reads only when it has got rid of this.
        with trio.fail_after(1):
            await near.send(frame(1, b"y", masked=True))
        assert (await next_frame(near))[1] == b"x"
        assert await next_frame(near) == (0x89, b"p")
        await near.send(frame(10, b"p", masked=True))
    assert await ws.receive_text() == "y"
    await ws.abort()


async def test_an_abort_cuts_a_close_short() -> None:
    async with serving(Settings(close_timeout=1000)) as (near, ws):
        async with anyio.create_task_group() as tg:
            tg.start_soon(ws.close)
            await anyio.wait_all_tasks_blocked()
            start = trio.current_time()
            await ws.abort()
            assert await next_frame(near) == (0x88, close_payload(1000, "Connection closed"))
            with pytest.raises(anyio.EndOfStream):
                await near.receive()
        assert trio.current_time() == start


async def test_an_abort_does_not_overwrite_the_peers_close() -> None:
    near, ws = await without_a_scope(Settings(ping_interval=None), size=0)
    async with anyio.create_task_group() as tg:
        tg.start_soon(ws.wait_closed)
        await anyio.wait_all_tasks_blocked()
        tg.start_soon(ws.abort, 1011)
        await anyio.wait_all_tasks_blocked()
        await near.send(frame(8, close_payload(4321), masked=True))
    assert ws.close_code == 4321


async def test_a_broken_rule_behind_messages_waits_for_a_slow_handler_for_a_moment() -> None:
    async with serving(Settings(ping_interval=None)) as (near, ws):
        await near.send(frame(1, b"x", masked=True) + frame(3, masked=True))
        start = trio.current_time()
        assert (await next_frame(near))[1][:2] == close_payload(1002)
        assert trio.current_time() - start <= 1
        assert await ws.receive_text() == "x"
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1002


@pytest.mark.parametrize("use", ["ping", "wait_closed", "close"])
async def test_without_a_scope_a_broken_rule_is_seen_by_whoever_reads(use: str) -> None:
    near, ws = await without_a_scope(Settings(ping_interval=None))
    await near.send(frame(1, b"x", masked=True) + frame(3, masked=True))
    with trio.fail_after(5):
        if use == "ping":
            with pytest.raises(ConnectionClosedError):
                await ws.ping()
        else:
            async with anyio.create_task_group() as tg:
                tg.start_soon(getattr(ws, use))
                await anyio.wait_all_tasks_blocked()
                await near.aclose()
    assert ws.close_code in (1002, 1006)
