"""Cancelling any await tears nothing: a clean continuation, or a connection that is closed."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from wsproto.connection import ConnectionState

from asyncwebsockets import (
    ConnectionClosed,
    Settings,
    create_websocket_client,
    open_websocket_client,
    open_websocket_server,
)

from .conftest import Pairs, cut, memory_pair, until
from .frames import close_payload, response_for
from .test_bad_input import Raw

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("codec")]


async def test_a_cancelled_receive_loses_nothing(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:
        total = 300

        async def send() -> None:
            for number in range(total):
                await client.send(b"%d" % number)
                if number % 3 == 0:
                    await client.send(b"a", final=False)
                    await client.send(b"b", final=False)
                    await client.send(b"c")

        tg.start_soon(send)
        received: list[bytes] = []
        choose = random.Random(7)
        while len(received) < total + total // 3:
            with anyio.CancelScope() as scope:
                delay = choose.randrange(4)
                if delay == 0:
                    scope.cancel()
                elif delay == 1:
                    scope.deadline = anyio.current_time() + choose.random() / 1000
                received.append(await server.receive_bytes())
        assert [data for data in received if data != b"abc"] == [b"%d" % n for n in range(total)]
        assert received.count(b"abc") == total // 3


async def test_a_cancelled_stream_loses_nothing_it_has_not_given(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:
        go_on = anyio.Event()

        async def send() -> None:
            await client.send("part", final=False)
            await go_on.wait()
            await client.send("rest")

        tg.start_soon(send)
        with anyio.move_on_after(0.05):
            await server.receive()
        go_on.set()
        async with server.receive_stream() as pieces:
            assert "".join([str(piece) async for piece in pieces]) == "partrest"


async def test_a_send_that_is_cancelled_half_way(pairs: Pairs) -> None:
    big = b"x" * 12_000_000
    async with pairs.connect() as (client, server):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:
                tg.start_soon(client.send, big)
                # Twice: the first time the supervisor may be at it.
                for _ in range(2):
                    await anyio.wait_all_tasks_blocked()
                scope.cancel()
        if pairs.on_sockets:
            # What the socket did not take waits for its turn.
            async with anyio.create_task_group() as tg:
                tg.start_soon(client.send, b"next")
                assert [await server.receive_bytes() for _ in range(2)] == [big, b"next"]
            return
        # A stream does not say how much of it went out.
        with pytest.raises(ConnectionClosed):
            await client.send(b"next")
        assert client.close_code == 1006
        received = []
        with pytest.raises(ConnectionClosed):
            while True:
                received.append(await server.receive())
        assert received == []


async def test_a_send_that_waits_for_another_can_be_cancelled(pairs: Pairs) -> None:
    async with pairs.connect(Settings(max_message_size=None)) as (client, server):
        big = b"x" * 12_000_000
        async with anyio.create_task_group() as tg:
            tg.start_soon(client.send, big)
            await anyio.wait_all_tasks_blocked()
            scope = anyio.CancelScope()

            async def wait() -> None:
                with scope:
                    await client.send(b"waiting")

            tg.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            tg.start_soon(client.send, b"last")
            # The one that was cancelled was not taken: such sends would fill the memory.
            assert [await server.receive_bytes() for _ in range(2)] == [big, b"last"]


async def test_a_cancelled_call_does_not_begin(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        calls: list[Any] = [
            lambda: client.send("never"),
            lambda: client.send("never", final=False),
            client.ping,
            client.receive,
        ]
        for call in calls:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
        await client.send("first")
        assert await server.receive_text() == "first"


async def test_cancelling_a_close_aborts(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tg:

        async def answer_no_close() -> None:
            peer = Raw(far)
            await peer.send(response_for(await peer.read_until(b"\r\n\r\n")))
            assert (await peer.frame())[1] == close_payload(4000, "Connection closed")
            scope.cancel()

        tg.start_soon(answer_no_close)
        client = await create_websocket_client(near, "h", "/")
        with scope:
            await client.close(4000)
        assert scope.cancelled_caught
    assert client.close_code == 1006
    await client.close()
    await cut(far)


@pytest.mark.parametrize("what", ["receive", "iterate", "send", "ping", "close", "wait_closed"])
async def test_every_call_sees_a_cancellation_in_a_busy_loop(pairs: Pairs, what: str) -> None:
    """A loop over a call that never has to wait ends when it is cancelled."""
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:

        async def feed() -> None:
            while True:
                await client.send("x")

        async def eat() -> None:
            while True:
                await server.receive()

        async def loop() -> None:
            if what == "close":
                await client.close()
            while True:
                match what:
                    case "receive":
                        await server.receive()
                    case "iterate":
                        async for _ in server:
                            pass
                    case "send":
                        await client.send("x")
                    case "ping":
                        await client.ping()
                    case "close":
                        await client.close()
                    case "wait_closed":
                        await client.wait_closed()

        if what in ("receive", "iterate"):
            tg.start_soon(feed)
        elif what != "close":
            tg.start_soon(eat)
        with anyio.move_on_after(0.1) as scope:
            await loop()
        assert scope.cancelled_caught
        if what != "close":
            assert client.close_code is server.close_code is None
        tg.cancel_scope.cancel()


async def test_no_connection_starves_another_task() -> None:
    near, far = memory_pair(1000)
    async with anyio.create_task_group() as tg:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await checkpoint()
                turns += 1

        async def serve() -> None:
            async with open_websocket_server(far) as server:
                for _ in range(640):
                    await server.send("x")
                await server.wait_closed()

        tg.start_soon(serve)
        async with open_websocket_client(near, "h", "/") as client:
            for _ in range(10):
                await anyio.wait_all_tasks_blocked()
            tg.start_soon(count)
            await until(lambda: turns > 0)
            before = turns
            for _ in range(640):
                await client.receive()
            # The last turn may still be to come.
            assert turns - before >= 640 // 128 - 1
        tg.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["close", "leave"])
async def test_closing_where_all_is_cancelled_aborts(pairs: Pairs, how: str) -> None:
    async with pairs.connect() as (client, server):
        with anyio.CancelScope() as scope:
            scope.cancel()
            if how == "close":
                await server.close()
            else:
                async with server:
                    assert server.state is ConnectionState.OPEN
        assert scope.cancelled_caught
        assert server.state is ConnectionState.CLOSED
        with pytest.raises(ConnectionClosed) as caught:
            await client.receive()
        assert caught.value.code == 1001


@pytest.mark.parametrize("form", ["message", "fragments"])
async def test_a_cancelled_fragment_holds_up_nobody(pairs: Pairs, form: str) -> None:
    async with pairs.connect() as (client, server):
        with anyio.CancelScope() as scope:
            if form == "message":
                async with client.message() as message:
                    await message.send("begun")
                    scope.cancel()
            else:
                await client.send("begun", final=False)
                scope.cancel()
                await client.send("more")
        with pytest.raises(ConnectionClosed), anyio.fail_after(5):
            await client.send("of another task")
        with pytest.raises(ConnectionClosed) as caught:
            await server.receive()
        assert caught.value.code == client.close_code == 1011


async def test_a_message_whose_first_piece_was_not_sent_costs_nothing(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        with pytest.raises(UnicodeEncodeError):
            async with client.message() as message:
                await message.send("\ud800")
        with anyio.CancelScope() as scope:
            async with client.message() as message:
                scope.cancel()
                await message.send("never")
        await client.send("next")
        assert await server.receive_text() == "next"


async def test_a_stream_may_not_take_what_another_task_waits_for(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:

        async def receive() -> None:
            assert await server.receive_text() == "first"

        tg.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            async with server.receive_stream():
                pytest.fail("another task is receiving")
        await client.send("first")


async def test_the_size_of_a_stream_is_not_counted_for_the_next_message(pairs: Pairs) -> None:
    async with pairs.connect(Settings(max_message_size=100)) as (client, server):
        async with anyio.create_task_group() as tg:
            tg.start_soon(server.receive)
            await client.send("a" * 60, final=False)
            await until(lambda: server._pieces.size == 60)
            tg.cancel_scope.cancel()
        await client.send("a" * 10)
        async with server.receive_stream() as pieces:
            assert "".join([str(piece) async for piece in pieces]) == "a" * 70
        await client.send("b" * 60)
        assert await server.receive_text() == "b" * 60
