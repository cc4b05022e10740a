"""What watches sockets beside a loop of asyncio's, and the loop in its place."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import _sockets
from asyncwebsockets._readers import EpollReaders, LoopReaders

from .conftest import BACKENDS, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asyncwebsockets._readers import Readers

    from .conftest import Pairs

    Ends = Callable[[], tuple[socket.socket, socket.socket]]

pytestmark = pytest.mark.anyio

KINDS: list[Any] = [LoopReaders]
if sys.platform == "linux":
    KINDS.append(EpollReaders)


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def readers(kind: Any) -> Readers:
    made: Readers = kind(asyncio.get_running_loop())
    return made


@pytest.fixture
def ends() -> Iterator[Ends]:
    made: list[socket.socket] = []

    def pair() -> tuple[socket.socket, socket.socket]:
        two = socket.socketpair()
        made.extend(two)
        return two

    yield pair
    for sock in made:
        sock.close()


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0.001)


async def test_a_socket_is_told_of_while_it_is_readable_and_not_paused(
    readers: Readers, ends: Ends
) -> None:
    near, far = ends()
    calls: list[int] = []
    readers.resume(far.fileno(), lambda: calls.append(1))
    await turns()
    assert not calls
    near.send(b"x")
    await until(lambda: len(calls) > 2)
    readers.pause(far.fileno())
    del calls[:]
    await turns()
    assert not calls
    # Before and after it has turned out that there is something.
    readers.resume(far.fileno(), lambda: calls.append(2))
    await until(lambda: 2 in calls)
    readers.pause(far.fileno())
    readers.resume(far.fileno(), lambda: calls.append(3))
    await until(lambda: 3 in calls)
    readers.forget(far.fileno())
    del calls[:]
    await turns()
    assert not calls


async def test_an_end_and_a_break_are_told(readers: Readers, ends: Ends) -> None:
    near, far = ends()
    end, broken = anyio.Event(), anyio.Event()
    readers.resume(far.fileno(), end.set)
    near.shutdown(socket.SHUT_WR)
    await end.wait()
    readers.forget(far.fileno())
    readers.resume(far.fileno(), broken.set)
    near.close()
    await broken.wait()
    readers.forget(far.fileno())


async def test_a_descriptor_may_come_again(readers: Readers, ends: Ends) -> None:
    calls: list[int] = []
    near, far = ends()
    descriptor = far.fileno()
    readers.resume(descriptor, lambda: calls.append(1))
    near.send(b"x")
    readers.forget(descriptor)
    other, again = ends()
    os.dup2(again.fileno(), far.detach())
    try:
        readers.resume(descriptor, lambda: calls.append(2))
        other.send(b"x")
        await until(lambda: bool(calls))
        assert set(calls) == {2}
        readers.forget(descriptor)
    finally:
        os.close(descriptor)


async def test_one_that_is_called_may_have_all_forgotten(readers: Readers, ends: Ends) -> None:
    calls: list[int] = []
    pairs = [ends() for _ in range(3)]

    def forget_all() -> None:
        calls.append(1)
        for _, far in pairs:
            readers.forget(far.fileno())

    for near, far in pairs:
        readers.resume(far.fileno(), forget_all)
        near.send(b"x")
    await until(lambda: bool(calls))
    await turns()
    if isinstance(readers, EpollReaders):
        assert calls == [1]
    # It starts anew.
    readers.resume(pairs[0][1].fileno(), forget_all)
    await until(lambda: len(calls) > 1)
    await turns()


async def test_what_one_raises_is_reported_and_harms_no_other(readers: Readers, ends: Ends) -> None:
    reported: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    pairs = [ends() for _ in range(3)]
    called: set[int] = set()
    for index, (near, far) in enumerate(pairs):

        def call(index: int = index) -> None:
            called.add(index)
            raise ValueError(index)

        readers.resume(far.fileno(), call)
        near.send(b"x")
    await until(lambda: len(called) == 3)
    for _, far in pairs:
        readers.forget(far.fileno())
    loop.set_exception_handler(None)
    assert {error.args[0] for error in reported} == {0, 1, 2}


@pytest.mark.parametrize("pairs", ["tcp", "tls"], indirect=True)
async def test_connections_work_with_each(
    pairs: Pairs, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def readers_of(loop: Any) -> Any:
        made.append(kind(loop))
        return made[-1]

    monkeypatch.setattr(_sockets, "readers_of", readers_of)
    async with pairs.connect() as (client, server):
        await client.send(b"x" * 1_000_000)
        assert len(await server.receive_bytes()) == 1_000_000
        for _ in range(100):
            await server.send("x")
        # More than may be read ahead.
        async with anyio.create_task_group() as tg:
            for _ in range(30):
                tg.start_soon(server.send, bytes(50_000))
            await anyio.sleep(0.01)
            for _ in range(100):
                assert await client.receive_text() == "x"
            for _ in range(30):
                assert len(await client.receive_bytes()) == 50_000
        await client.close(4000)
        assert client.close_code == 4000
        await server.wait_closed()
    assert made
