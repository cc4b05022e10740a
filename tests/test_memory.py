"""What a connection takes, and what it leaves behind."""

from __future__ import annotations

import gc
import socket
import tracemalloc
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest

from asyncwebsockets import Server, Settings, Websocket, codec, open_websocket, serve
from asyncwebsockets._supervisor import Supervised, Supervisor
from asyncwebsockets.channel import WireChannel

from .conftest import until
from .frames import REQUEST, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


def channels() -> list[WireChannel]:
    # Not by isinstance: what others have made may do anything when it is asked for its class.
    return [found for found in gc.get_objects() if type(found) is WireChannel]


async def idle(ws: Websocket) -> None:
    async for _ in ws:
        pass


async def connect(server: Server, stack: ExitStack) -> socket.socket:
    """Connect as a client that takes nothing, and wait until the server has it."""
    there = len(server.connections)
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
    sock.sendall(REQUEST)
    await until(lambda: len(server.connections) > there)
    return sock


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.skipif(codec.IMPLEMENTATION == "pure", reason="wsproto's frame protocol takes more")
async def test_an_idle_connection_is_small(anyio_backend_name: str) -> None:
    async with anyio.create_task_group() as tg:
        server: Server = await tg.start(partial(serve, idle, "127.0.0.1", 0))
        with ExitStack() as stack:
            # The first ones bring about what is there only once.
            for _ in range(10):
                await connect(server, stack)
            tracemalloc.start()
            for _ in range(100):
                await connect(server, stack)
            gc.collect()
            size, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert size / 100 < (10 if anyio_backend_name == "asyncio" else 15) * 1024
            tg.cancel_scope.cancel()


@pytest.mark.skipif(codec.IMPLEMENTATION == "pure", reason="wsproto's frame protocol takes more")
async def test_a_large_message_is_in_memory_once_at_each_end(anyio_backend_name: str) -> None:
    size = 16 << 20
    message = bytes(range(256)) * (size // 256)

    async def handler(ws: Websocket) -> None:
        await ws.receive()
        await ws.send(message)

    async with anyio.create_task_group() as tg:
        server: Server = await tg.start(partial(serve, handler, "127.0.0.1", 0))
        settings = Settings(max_message_size=size, compression=None)
        async with open_websocket(f"ws://127.0.0.1:{server.port}", settings=settings) as ws:
            tracemalloc.start()
            try:
                await ws.send("go")
                received = await ws.receive_bytes()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert received == message
            # The sender's is not counted, for it was there before. On trio pieces are joined.
            assert peak < (1.2 if anyio_backend_name == "asyncio" else 2.2) * size
        tg.cancel_scope.cancel()


async def test_a_connection_leaves_nothing_to_the_garbage_collector() -> None:
    async with anyio.create_task_group() as tg:
        server: Server = await tg.start(partial(serve, idle, "127.0.0.1", 0))
        with ExitStack() as stack, no_collector():
            kept = set(map(id, channels()))
            for _ in range(3):
                sock = await connect(server, stack)
                sock.sendall(frame(8, b"\x03\xe8", masked=True))
                sock.shutdown(socket.SHUT_WR)
                await until(lambda: not server.connections)
            await anyio.sleep(0.05)
            assert not [channel for channel in channels() if id(channel) not in kept]
        tg.cancel_scope.cancel()


class Resting(Supervised):
    """A connection that has nothing to be done for it until its deadline."""

    def __init__(self) -> None:
        self.due = anyio.Event()

    def tend(self) -> bool:
        return False

    def release(self) -> None:
        raise AssertionError("its supervisor was never stopped")

    def on_deadline(self, now: float) -> None:
        self.due.set()


async def test_timers_do_not_outlive_their_connections_by_many() -> None:
    async with anyio.create_task_group() as tg:
        supervisor = Supervisor(tg)
        now = anyio.current_time()
        stay = [Resting() for _ in range(50)]
        for number, connection in enumerate(stay):
            supervisor.add(connection, now + number / 1e6)
            for _ in range(200):
                passing = Resting()
                supervisor.add(passing, now + 1000)
                supervisor.remove(passing)
        assert len(supervisor._timers) <= 2 * len(stay) + 64
        tg.start_soon(supervisor.run)
        for connection in stay:
            await connection.due.wait()
            supervisor.remove(connection)
        tg.cancel_scope.cancel()
