"""Time-outs of our host as its application sees them, on trio's mock clock."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import trio
from trio.testing import MockClock

from asgi_bridge import ClientDisconnected, open_websocket_app
from asyncwebsockets import Settings

from ..conftest import cut
from ..frames import REQUEST, close_payload, frame
from .scenarios import Raw
from .wire import ACCEPT, Application, connected, in_memory

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


def now() -> Any:
    """The time, to compare with."""
    return pytest.approx(trio.current_time(), abs=0.001)


async def test_a_silent_peer_is_1011_on_both_sides() -> None:
    app = Application()
    settings = Settings(ping_interval=20, ping_timeout=15)
    async with connected(in_memory, app, settings) as raw:
        start = trio.current_time()
        opcode, _ = await raw.frame() or (0, b"")
        assert opcode == 9
        assert start + 20 == now()
        assert await raw.end() == {"close": 1011}
        assert start + 35 == now()
    assert app.end[0] == 1011


@pytest.mark.parametrize("floods", [False, True])
async def test_a_peer_that_does_not_answer_a_close_is_1006(floods: bool) -> None:
    times: list[float] = []

    async def close(receive: Any, send: Any) -> None:
        start = trio.current_time()
        await send({"type": "websocket.close", "code": 4002})
        times.append(trio.current_time() - start)

    app = Application(close)
    async with connected(in_memory, app, Settings(close_timeout=7)) as raw:
        assert await raw.frame() == (8, close_payload(4002))
        if floods:
            with pytest.raises(anyio.BrokenResourceError):
                while True:
                    await raw.send(frame(2, bytes(1000), masked=True))
                    await trio.sleep(0.01)
        assert await raw.frame() is None
        await app.ended.wait()
    assert times == [pytest.approx(7, abs=0.1)]
    assert app.end[0] == 1006
    assert app.received == []


async def test_a_request_that_does_not_end_is_408() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pytest.fail("there was no request")

    async with in_memory(app, Settings(open_timeout=7)) as connect:
        stream = await connect()
        start = trio.current_time()
        await stream.send(REQUEST[:30])
        assert (await stream.receive()).startswith(b"HTTP/1.1 408 ")
        assert start + 7 == now()
        await cut(stream)


async def test_an_application_that_does_not_answer_in_time_is_503() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        seen.append(await receive())
        with pytest.raises(ClientDisconnected):
            await send(ACCEPT)
        seen.append(await receive())

    async with in_memory(app, Settings(open_timeout=7)) as connect:
        stream = await connect()
        start = trio.current_time()
        assert await Raw(stream).handshake("/") == 503
        assert start + 7 == now()
        await cut(stream)
    assert seen == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}] * 2


async def test_a_blocked_send_can_be_given_up() -> None:
    given_up: list[bool] = []

    async def flood(receive: Any, send: Any) -> None:
        with anyio.move_on_after(3) as scope:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
        given_up.append(scope.cancelled_caught)
        # Half a message may be on the wire, so there can be no other.
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "late"})

    app = Application(flood)
    async with connected(in_memory, app) as raw:
        start = trio.current_time()
        await app.ended.wait()
        assert trio.current_time() - start < 4
        while (came := await raw.frame()) is not None:
            assert came == (2, bytes(100_000))
    assert given_up == [True]
    assert app.end[0] == 1006


async def test_an_application_that_does_not_end_in_process_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cancelled = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    async with open_websocket_app(app, "/", lifespan="off", settings=Settings(drain_timeout=7)):
        start = trio.current_time()
    # A Close is noticed within a second where nobody receives.
    assert 7 <= trio.current_time() - start < 8
    assert cancelled.is_set()
    (record,) = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert record.levelname == "WARNING"
    assert "did not end within drain_timeout=7 s" in record.getMessage()
