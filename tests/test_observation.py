"""What can be known of connections from outside."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import Observation, Settings, open_websocket, serve
from asyncwebsockets._observing import describe

if TYPE_CHECKING:
    from asyncwebsockets import ConnectionRecord, Request, Websocket

    from .conftest import Pairs

pytestmark = pytest.mark.anyio


async def test_both_sides_count_the_same(codec: Any, pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        await client.send("text")
        await client.send(b"in ", final=False)
        await client.send(b"two", final=True)
        assert await server.receive_text() == "text"
        assert await server.receive_bytes() == b"in two"
        here, there = client.statistics, server.statistics
        assert (here.messages_sent, here.messages_received) == (2, 0)
        assert (there.messages_received, there.messages_sent) == (2, 0)
        # Three headers with masks, and what is in them.
        assert here.bytes_sent == there.bytes_received == 3 * 6 + 10
        assert here.opened_at > 0
        assert here.duration >= 0


class Told(Observation):
    headers = (("X-Trace", "1"),)

    def __init__(self, ends: list[ConnectionRecord]) -> None:
        self.ends = ends

    def closed(self, record: ConnectionRecord) -> None:
        self.ends.append(record)
        raise RuntimeError("the observer's own")


async def test_the_end_is_logged_and_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asyncwebsockets")
    ends: list[ConnectionRecord] = []
    seen: list[str | None] = []

    async def handler(websocket: Websocket) -> None:
        seen.append(websocket.request.header("X-Trace"))
        async for _ in websocket:
            pass

    def observer(role: str, request: Request) -> Observation:
        return Told(ends)

    settings = Settings(observer=observer)
    async with anyio.create_task_group() as tg:
        server = await tg.start(
            lambda **kw: serve(handler, "127.0.0.1", 0, **kw, settings=settings)
        )
        async with open_websocket(
            f"ws://127.0.0.1:{server.port}/a?secret", settings=settings
        ) as ws:
            await ws.send("hello")
            await ws.close(4000, "a\nb")
        await server.close()
        totals = server.statistics
    assert (totals.accepted, totals.opened, totals.open, totals.messages_received) == (1, 1, 0, 1)
    assert seen == ["1"]
    assert {(end.role, end.closed_by, end.close_code) for end in ends} == {
        ("client", "local", 4000),
        ("server", "remote", 4000),
    }
    assert all(end.clean and end.path == "/a" for end in ends)
    records: list[Any] = [r for r in caplog.records if r.name == "asyncwebsockets.connections"]
    assert {(r.role, r.levelname, r.closed_by) for r in records} == {
        ("client", "DEBUG", "local"),
        ("server", "DEBUG", "remote"),
    }
    assert all(r.getMessage().isprintable() and "secret" not in r.getMessage() for r in records)
    frames = [r.getMessage() for r in caplog.records if r.name == "asyncwebsockets.frames"]
    assert any(line.endswith("received text, fin, 5 bytes") for line in frames)
    assert any(line.endswith("sent close 4000, fin, 5 bytes") for line in frames)
    assert not any("hello" in line for line in frames)


async def test_addresses_are_written_as_usual() -> None:
    assert describe(("::1", 80)) == "[::1]:80"
    assert describe(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert describe(None) == "-"
