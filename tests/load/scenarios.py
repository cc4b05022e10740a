"""Many connections, much churn, too many connections, and a drain, each on a server apart.

What does not hold is raised as a :class:`LoadFailure`; what was measured is printed.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncwebsockets import (
    ConnectionClosed,
    Deflate,
    Settings,
    create_websocket,
    open_websocket,
)

from ..frames import REQUEST, frame
from .measure import growth, quantile, sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from anyio.abc import Process, SocketStream

_ROOT = Path(__file__).resolve().parents[2]

# Handshakes at a time; the server's own limit is above.
_OPENING = 200

# Messages that a client of the drain sends ahead of their acknowledgements.
_AHEAD = 8


# For churn, on a machine where other work holds a process up for minutes: nothing there is to end
# for want of time.
_PATIENCE: dict[str, Any] = {"open_timeout": 600, "close_timeout": 600, "ping_timeout": 600}


class LoadFailure(Exception):
    """Something that is promised did not hold under load."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise LoadFailure(otherwise)


class Served:
    """The server's process."""

    def __init__(self, process: Process, port: int, answers: BufferedByteReceiveStream) -> None:
        self.port = port
        self._process = process
        self._answers = answers
        self._lock = anyio.Lock()

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    async def ask(self, command: str) -> Any:
        async with self._lock:
            assert self._process.stdin is not None
            await self._process.stdin.send(command.encode() + b"\n")
            return json.loads(await self._answers.receive_until(b"\n", 1 << 24))


@asynccontextmanager
async def serving(backend: str, **settings: float) -> AsyncIterator[Served]:
    """Run a server in a process of its own, and end it."""
    command = [sys.executable, "-m", "tests.load.server", backend, json.dumps(settings)]
    # Its standard error is ours: whatever it has to complain about is to be seen.
    async with await anyio.open_process(command, cwd=_ROOT, stderr=None) as process:
        try:
            assert process.stdout is not None
            answers = BufferedByteReceiveStream(process.stdout)
            port = json.loads(await answers.receive_until(b"\n", 100))
            yield Served(process, port, answers)
        finally:
            process.kill()


# Many connections


@dataclass
class _Audience:
    """Clients that listen, and how long what they hear takes."""

    url: str
    connections: int = 0
    endings: list[object] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    opening: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_OPENING))

    async def listen(self) -> None:
        async with self.opening:
            websocket = await create_websocket(self.url)
        async with websocket:
            self.connections += 1
            try:
                async for text in websocket.iter_text():
                    self.latencies.append(_since(text))
            except ConnectionClosed as exc:
                self.endings.append(exc)
            else:
                self.endings.append(websocket.close_code)


async def load(backend: str, connections: int, seconds: int) -> None:
    """Keep many connections open, and send a message to all of them each second."""
    async with serving(backend) as server, anyio.create_task_group() as tasks:
        audience = _Audience(server.url("/subscribe"))
        began = time.monotonic()
        for _ in range(connections):
            tasks.start_soon(audience.listen)
        await _until(lambda: audience.connections == connections, 120, "they are all open")
        print(f"{connections} connections opened in {time.monotonic() - began:.1f} s")
        print(" second   heard   p50 ms   p99 ms   max ms    sending   CPU %  RSS MiB  descriptors")
        before, looked = await server.ask("sample"), time.monotonic()
        for second in range(1, seconds + 1):
            audience.latencies.clear()
            sending = await server.ask("broadcast")
            await _until(lambda: len(audience.latencies) >= connections, 30, "all have heard it")
            await anyio.sleep(max(0, looked + 1 - time.monotonic()))
            now, at = await server.ask("sample"), time.monotonic()
            heard = [1000 * latency for latency in audience.latencies]
            print(
                f"{second:7} {len(heard):7} {quantile(heard, 0.5):8.1f}"
                f" {quantile(heard, 0.99):8.1f} {max(heard):8.1f} {1000 * sending:7.1f} ms"
                f" {100 * (now['cpu'] - before['cpu']) / (at - looked):7.1f}"
                f" {now['rss'] / 2**20:8.1f} {now['descriptors']:12}"
            )
            before, looked = now, at
            expect(
                len(heard) == connections, f"expected {connections} to hear it, {len(heard)} did"
            )
            expect(not audience.endings, f"connections have ended: {audience.endings[:5]}")
            expect(now["connections"] == connections, f"the server has {now['connections']}")
        tasks.cancel_scope.cancel()


# Too many


@dataclass
class _Talkers:
    """Clients whose messages are echoed, and how long that takes."""

    url: str
    #: Seconds between the messages of each.
    pause: float
    talking: int = 0
    waits: list[float] = field(default_factory=list)
    opening: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_OPENING))
    ready: anyio.Event = field(default_factory=anyio.Event)

    async def talk(self) -> None:
        async with self.opening:
            websocket = await create_websocket(self.url)
        async with websocket:
            self.talking += 1
            await self.ready.wait()
            # Not all at once.
            await anyio.sleep(random.random() * self.pause)
            while True:
                await websocket.send(str(time.monotonic_ns()))
                self.waits.append(1000 * _since(await websocket.receive_text()))
                await anyio.sleep(self.pause)

    def heard(self) -> list[float]:
        """Return the milliseconds waited since the last time."""
        waits, self.waits = self.waits, []
        return waits


@dataclass
class _State:
    """How a server fares, in each of a few rounds."""

    name: str
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    count: int = 0
    cpu: float = 0
    seconds: float = 0

    def add(self, waits: list[float], cpu: float, seconds: float) -> None:
        self.p50.append(quantile(waits, 0.5))
        self.p99.append(quantile(waits, 0.99))
        self.count += len(waits)
        self.cpu += cpu
        self.seconds += seconds

    def __str__(self) -> str:
        return (
            f"{self.name:>8}: {self.count} answers, p50 {median(self.p50):.2f} ms,"
            f" p99 {median(self.p99):.2f} ms, {100 * self.cpu / self.seconds:.0f} % of one core"
        )


async def overload(
    backend: str,
    connections: int,
    seconds: float,
    *,
    rounds: int = 1,
    rate: float = 1000,
    slower: float | None = None,
) -> None:
    """Have a full server turn away who else comes, and compare how long its clients wait.

    They send a thousand messages a second, all together; in each round for so many seconds alone,
    and as long while `rate` others a second knock. Of both, the median of the rounds is compared,
    so that other work of the machine is in either. With `slower`, their 99th percentile may be
    that many times what it was alone.
    """
    async with (
        serving(backend, max_connections=connections) as server,
        anyio.create_task_group() as tasks,
    ):
        talkers = _Talkers(server.url("/echo"), connections / 1000)
        for _ in range(connections):
            tasks.start_soon(talkers.talk)
        await _until(lambda: talkers.talking == connections, 60, "they are all open")
        talkers.ready.set()
        await anyio.sleep(talkers.pause)

        @asynccontextmanager
        async def looking_at(state: _State) -> AsyncIterator[None]:
            before, looked = await server.ask("cpu"), time.monotonic()
            talkers.heard()
            yield
            state.add(talkers.heard(), await server.ask("cpu") - before, time.monotonic() - looked)

        alone, crowded = _State("alone"), _State("crowded")
        answers: Counter[str] = Counter()
        command = [sys.executable, "-m", "tests.load.storm", str(server.port), str(seconds)]
        for _ in range(rounds):
            async with looking_at(alone):
                await anyio.sleep(seconds)
            async with looking_at(crowded):
                storm = await anyio.run_process([*command, str(rate)], cwd=_ROOT, stderr=None)
            answers.update(json.loads(storm.stdout))
        print(
            f"{connections} connections talk; meanwhile {answers.total() / seconds / rounds:.0f}"
            f" others a second were answered: {dict(answers)}"
        )
        print(alone)
        print(crowded)
        expect(answers["503"] > 0, f"nobody was told 503: {answers}")
        expect(answers.keys() <= {"503", "cut"}, f"expected 503 or nothing, got {answers}")
        if slower is not None:
            limit = slower * median(alone.p99)
            expect(median(crowded.p99) <= limit, f"the open ones waited over {limit:.1f} ms")
        tasks.cancel_scope.cancel()


# A drain


async def drain(backend: str, connections: int, seconds: float) -> None:
    """Close a server while its clients send: what it has acknowledged is recorded, and arrives."""
    acknowledged: dict[str, int] = {}
    codes: list[int | None] = []

    async def send(url: str, name: str) -> None:
        acknowledged[name] = 0
        async with open_websocket(f"{url}{name}") as websocket:

            async def ahead() -> None:
                number = 0
                with suppress(ConnectionClosed):
                    while True:
                        if number < acknowledged[name] + _AHEAD:
                            await websocket.send(str(number))
                            number += 1
                        else:
                            await anyio.sleep(0.001)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ahead)
                async for text in websocket.iter_text():
                    expect(int(text) == acknowledged[name], f"{text} was acknowledged out of turn")
                    acknowledged[name] += 1
                tasks.cancel_scope.cancel()
            codes.append(websocket.close_code)

    async with serving(backend) as server:
        async with anyio.create_task_group() as tasks:
            for number in range(connections):
                tasks.start_soon(send, server.url("/record/"), str(number))
            await anyio.sleep(seconds)
            await server.ask("close")
        records = await server.ask("records")
    expect(codes == [1012] * connections, f"expected 1012 for all, got {set(codes)}")
    for name, count in acknowledged.items():
        recorded, told = records[name]
        expect(
            recorded >= told == count,
            f"client {name} has {count} acknowledgements of {told}, with {recorded} recorded",
        )
    print(
        f"{connections} clients, {sum(acknowledged.values())} messages acknowledged, none lost;"
        f" {sum(each[0] - each[1] for each in records.values())} recorded beyond these"
    )


# Churn


class _Churn:
    """Clients that come and go in every way there is."""

    def __init__(self, server: Served, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.counts: dict[str, int] = {}
        self.ways: Sequence[Callable[[], Awaitable[None]]] = (
            *(self.talk, self.talk, self.drop, self.cancel, self.cancel, self.fail),
            *(self.reset, self.violate, self.flood, self.half),
        )

    async def work(self, until: float) -> None:
        while time.monotonic() < until:
            way = self.random.choice(self.ways)
            await way()
            self.counts[way.__name__] = self.counts.get(way.__name__, 0) + 1

    def settings(self) -> Settings:
        return Settings(compression=self.random.choice([None, Deflate(mem_level=5)]), **_PATIENCE)

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 100, 5000, 100_000]))

    async def talk(self) -> None:
        async with open_websocket(self.server.url("/echo"), settings=self.settings()) as websocket:
            for _ in range(self.random.randrange(5)):
                data = self.data()
                await websocket.send(data)
                expect(await websocket.receive_bytes() == data, "the echo differs")

    async def drop(self) -> None:
        url = self.server.url("/echo")
        websocket = await create_websocket(url, settings=self.settings())
        await websocket.send(self.data())
        await websocket.abort()

    async def cancel(self) -> None:
        with anyio.move_on_after(self.random.random() / 50):
            while True:
                await self.talk()

    async def fail(self) -> None:
        with suppress(ZeroDivisionError):
            url = self.server.url("/subscribe")
            async with open_websocket(url, settings=self.settings()) as websocket:
                await websocket.ping()
                raise ZeroDivisionError

    async def reset(self) -> None:
        """Break off in the middle of a frame."""
        async with self.raw() as stream:
            await stream.send(frame(2, bytes(1000), masked=True)[:-10])
            sock: socket.socket = stream.extra(SocketAttribute.raw_socket)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def violate(self) -> None:
        async with self.raw() as stream:
            await stream.send(frame(3, masked=True))
            await self.rest(stream)

    async def flood(self) -> None:
        async with self.raw() as stream:
            await stream.send(frame(9, bytes(100), masked=True) * 200 + frame(8, masked=True))
            await self.rest(stream)

    async def half(self) -> None:
        async with await anyio.connect_tcp("127.0.0.1", self.server.port) as stream:
            await stream.send(REQUEST[: self.random.randrange(len(REQUEST))])

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[SocketStream]:
        async with await anyio.connect_tcp("127.0.0.1", self.server.port) as stream:
            await stream.send(REQUEST.replace(b"/path?q=1", b"/echo"))
            await stream.receive()
            yield stream

    async def rest(self, stream: SocketStream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await stream.receive()


async def soak(
    backend: str, workers: int, rounds: int, seconds: float, *, grows: bool = False
) -> None:
    """Connect, talk, drop, reset and cancel, and see that both sides hold no more than before.

    All connections end between rounds of so many seconds. With `grows`, memory may grow: in a
    few rounds it does.
    """
    async with serving(backend, **_PATIENCE) as server:
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        churn = _Churn(server, seed=1)
        side = "MiB  descriptors  tasks"
        print(f" round  connections |  server: {side} |  client: {side}")
        for number in range(1, rounds + 1):
            async with anyio.create_task_group() as tasks:
                for _ in range(workers):
                    tasks.start_soon(churn.work, time.monotonic() + seconds)
            with anyio.move_on_after(60):
                while (await server.ask("sample"))["connections"]:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            # What was closed may still be told so by the loop.
            await anyio.sleep(0.1)
            ours.append(sample())
            theirs.append(await server.ask("sample"))
            print(
                f"{number:6} {sum(churn.counts.values()):12} |"
                + " |".join(
                    f" {each[-1]['rss'] / 2**20:12.1f} {each[-1]['descriptors']:12}"
                    f" {each[-1]['tasks']:6}"
                    for each in (theirs, ours)
                ),
                flush=True,
            )
        print(f"what they did: {churn.counts}")
        expect(not any(each["connections"] for each in theirs), "some connections did not end")
        for name, samples in (("server", theirs), ("client", ours)):
            found = [what for what in growth(samples) if not (grows and "memory" in what)]
            expect(not found, f"the {name} has grown: {'; '.join(found)}")


def _since(stamp: str) -> float:
    """Return the seconds since a time stamp; all processes have the same clock."""
    return (time.monotonic_ns() - int(stamp)) / 1e9


async def _until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    with anyio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)
        return
    raise LoadFailure(f"expected within {seconds:g} s that {what}")
