"""The end of connections, as both sides see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from asyncwebsockets import ConnectionClosedError, ConnectionState, Settings
from asyncwebsockets.events import TextMessage

from .peer import Closed, Options
from .roster import links

if TYPE_CHECKING:
    from asyncwebsockets import Websocket

    from .link import Link

pytestmark = pytest.mark.anyio

# The longest reason there may be, and one in which bytes and characters differ.
CLOSINGS = [(1000, ""), (3000, "x" * 123), (4999, "größer")]


async def events(ws: Websocket) -> list[object]:
    return [event async for event in ws]


@links()
@pytest.mark.parametrize(("code", "reason"), CLOSINGS)
async def test_we_close(link: Link, code: int, reason: str) -> None:
    async with link.connection() as connection:
        ws = connection.ws

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.close, code, reason)
            assert await connection.far.closed() == Closed(code, reason)
        assert ws.state is ConnectionState.CLOSED
        assert Closed(ws.close_code, ws.close_reason) == link.peer.echo(code, reason)


@links()
async def test_we_close_as_the_default_has_it(link: Link) -> None:
    async with link.connection() as connection:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.ws.close)
            # 1006 may not be sent (RFC 6455 section 7.4.1).
            assert await connection.far.closed() == Closed(1000, "Connection closed")


@links()
@pytest.mark.parametrize(("code", "reason"), CLOSINGS)
async def test_the_peer_closes(link: Link, code: int, reason: str) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(far.close, code, reason)
            assert await events(ws) == []
        assert (ws.close_code, ws.close_reason) == (code, reason)
        assert await far.closed() == link.peer.answered(link.role, code, reason)


@links(lambda peer: peer.closes_without_code)
async def test_the_peer_closes_without_a_code(link: Link) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(far.close, None)
            assert await events(ws) == []
        assert (ws.close_code, ws.close_reason) == (1005, "")
        assert await far.closed() == Closed(1005, "")


@links()
async def test_what_was_sent_before_close_arrives_before_it(link: Link) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far
        texts = [str(number) for number in range(20)]
        async with anyio.create_task_group() as tasks:
            for text in texts:
                await far.send(text)
            tasks.start_soon(far.close, 1000)
            assert await events(ws) == [TextMessage(text) for text in texts]


@links()
async def test_what_we_sent_before_close_arrives_before_it(link: Link) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far
        texts = [str(number) for number in range(20)]
        async with anyio.create_task_group() as tasks:
            for text in texts:
                await ws.send(text)
            tasks.start_soon(ws.close, 1000, "")
            assert [await far.receive() for _ in texts] == texts
            assert await far.closed() == Closed(1000, "")


@links(lambda peer: peer.can_drop)
async def test_the_peer_vanishes(link: Link) -> None:
    async with link.connection() as connection:
        ws, far = connection.ws, connection.far
        await far.send("before")
        assert await ws.receive_text() == "before"
        await far.drop()
        with pytest.raises(ConnectionClosedError) as caught:
            await events(ws)
        assert caught.value.code == ws.close_code == 1006


@links()
async def test_we_vanish(link: Link) -> None:
    async with link.connection() as connection:
        await connection.ws.abort()
        assert await connection.far.closed() == link.peer.lost(link.role)


@links()
async def test_an_exception_in_the_body_is_1011(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    async with link.connection() as connection:
        connection.ours.error = RuntimeError("the body's own")
        connection.ours.leave.set()
        assert await connection.far.closed() == Closed(1011, "")
    # Our server tells of a handler that failed; our client raises what its body raised.
    logged = [record for record in caplog.records if record.name == "asyncwebsockets"]
    assert len(logged) == (link.role == "client")


@links(role="client")
async def test_our_server_shuts_down(link: Link) -> None:
    async with link.connection() as connection:
        assert connection.server is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.server.close, 1012, "back soon")
            assert await connection.far.closed() == Closed(1012, "back soon")
            connection.ours.leave.set()


@links()
async def test_the_peer_sends_too_much(link: Link) -> None:
    async with link.connection(settings=Settings(max_message_size=1000)) as connection:
        ws, far = connection.ws, connection.far
        await far.send("x" * 1000)
        assert await ws.receive_text() == "x" * 1000
        await far.send("x" * 1001)
        with pytest.raises(ConnectionClosedError) as caught:
            await ws.receive()
        assert caught.value.code == 1009
        assert await far.closed() == Closed(1009, caught.value.reason)


@links(lambda peer: peer.limits_size)
async def test_we_send_too_much(link: Link) -> None:
    async with link.connection(Options(max_size=1000)) as connection:
        ws, far = connection.ws, connection.far
        await ws.send("x" * 1000)
        assert await far.receive() == "x" * 1000
        await ws.send("x" * 1001)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(far.closed)
            # It ends with a Close, and so without an error.
            assert await events(ws) == []
        assert ws.close_code == 1009
