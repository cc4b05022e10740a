"""A peer in one role, ours in the other, and a connection between them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from asyncwebsockets import (
    ConnectionClosed,
    Request,
    Server,
    Settings,
    Websocket,
    open_websocket,
    serve,
)

from .peer import Closed, Data, End, Listening, Options, Peer, Tls

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
    from concurrent.futures import Future

    from anyio.abc import TaskStatus

T = TypeVar("T")


class Peers:
    """The peers in use, and the event loops they run in, each in a thread of its own."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._portals: dict[str, BlockingPortal] = {}
        self._peers: dict[type[Peer], Peer] = {}

    def get(self, kind: type[Peer]) -> tuple[Peer, BlockingPortal]:
        portal = self._portals.get(kind.backend)
        if portal is None:
            portal = self._stack.enter_context(start_blocking_portal(kind.backend))
            self._portals[kind.backend] = portal
        peer = self._peers.get(kind)
        if peer is None:
            peer = kind()
            self._stack.enter_context(portal.wrap_async_context_manager(peer.running()))
            self._peers[kind] = peer
        return peer, portal


def running_peers() -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(stack)


async def call(portal: BlockingPortal, function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Call a function in a portal's event loop; a cancellation reaches it there."""
    futures: list[Future[T]] = []

    # Trio lets no thread that runs it wait for another one that does: all is done in a third.
    def run() -> T:
        futures.append(portal.start_task_soon(function, *args))
        return futures[0].result()

    def cancel() -> None:
        futures[0].cancel()

    try:
        return await to_thread.run_sync(run, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(cancel)
        raise


@asynccontextmanager
async def entered(
    portal: BlockingPortal, manager: AbstractAsyncContextManager[T]
) -> AsyncGenerator[T, None]:
    """Enter and leave a context manager in a portal's event loop, in one task there."""

    async def run(*, task_status: TaskStatus[tuple[T, anyio.Event]]) -> None:
        async with manager as value:
            leave = anyio.Event()
            task_status.started((value, leave))
            await leave.wait()

    async def leave_now() -> None:
        leave.set()

    future, (value, leave) = await to_thread.run_sync(portal.start_task, run)
    try:
        yield value
        await call(portal, leave_now)
        await to_thread.run_sync(future.result, abandon_on_cancel=True)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(future.cancel)


class Far:
    """The peer's end of a connection, used in the test's event loop."""

    def __init__(self, portal: BlockingPortal, end: End) -> None:
        self._portal = portal
        self._end = end
        self.subprotocol = end.subprotocol
        self.header = end.header
        self.target = end.target
        self.pings = end.pings

    async def send(self, data: Data) -> None:
        await call(self._portal, self._end.send, data)

    async def send_fragments(self, pieces: Sequence[Data]) -> None:
        await call(self._portal, self._end.send_fragments, pieces)

    async def receive_fragments(self) -> list[Data]:
        return await call(self._portal, self._end.receive)

    async def receive(self) -> Data:
        fragments: list[Any] = await self.receive_fragments()
        joined: Data = type(fragments[0])().join(fragments)
        return joined

    async def ping(self, payload: bytes) -> None:
        await call(self._portal, self._end.ping, payload)

    async def close(self, code: int | None, reason: str = "") -> None:
        await call(self._portal, self._end.close, code, reason)

    async def closed(self) -> Closed:
        return await call(self._portal, self._end.closed)

    async def drop(self) -> None:
        await call(self._portal, self._end.drop)


@dataclass
class Ours:
    """Our end of a connection, which a task holds open."""

    websocket: Websocket | None = None
    opened: anyio.Event = field(default_factory=anyio.Event)
    leave: anyio.Event = field(default_factory=anyio.Event)
    #: What the body of the connection's scope is to raise when it is left.
    error: Exception | None = None

    async def connected(self) -> Websocket:
        await self.opened.wait()
        assert self.websocket is not None
        return self.websocket

    async def hold(self, ws: Websocket) -> None:
        self.websocket = ws
        self.opened.set()
        await self.leave.wait()
        if self.error is not None:
            raise self.error


@dataclass
class Connection:
    """Both ends of a connection."""

    ws: Websocket
    far: Far
    ours: Ours
    #: Our server, if the peer is the client.
    server: Server | None


@dataclass
class Link:
    """A peer and the role it has."""

    peer: Peer
    role: str
    portal: BlockingPortal
    tls: Tls

    @asynccontextmanager
    async def listening(
        self,
        ours: Ours | None = None,
        settings: Settings | None = None,
        filter: Callable[[Request], Awaitable[object]] | None = None,
        tls: bool = False,
        **kwargs: Any,
    ) -> AsyncGenerator[tuple[Server, str], None]:
        """Run our server; gives it and its URL."""
        handler = (ours or Ours()).hold
        async with anyio.create_task_group() as tasks:
            server: Server = await tasks.start(
                partial(
                    serve,
                    handler,
                    "127.0.0.1",
                    0,
                    filter=filter,
                    settings=settings,
                    ssl=self.tls.server if tls else None,
                    **kwargs,
                )
            )
            (address,) = server.addresses
            assert isinstance(address, tuple)
            url = f"wss://localhost:{address[1]}" if tls else f"ws://127.0.0.1:{address[1]}"
            yield server, url
            await server.close()

    def peer_connects(
        self, url: str, options: Options | None = None
    ) -> AbstractAsyncContextManager[End]:
        """Connect the peer's client; raises Refused."""
        return entered(self.portal, self.peer.connect(url, options or Options()))

    def peer_serves(self, options: Options | None = None) -> AbstractAsyncContextManager[Listening]:
        """Run the peer's server."""
        return entered(self.portal, self.peer.serve(options or Options()))

    @asynccontextmanager
    async def connection(
        self,
        options: Options | None = None,
        *,
        settings: Settings | None = None,
        subprotocols: Sequence[str] = (),
        headers: Sequence[tuple[str, str]] = (),
        filter: Callable[[Request], Awaitable[object]] | None = None,
        path: str = "/",
    ) -> AsyncGenerator[Connection, None]:
        """Connect the two; what is left open in the end, the peer closes.

        Args:
            options: of the peer.
            settings: of ours.
            subprotocols, headers: what our client offers.
            filter: our server's.
            path: the request's target.
        """
        ours = Ours()
        options = options or Options()

        async def connect(url: str) -> None:
            try:
                async with open_websocket(
                    url,
                    list(headers),
                    subprotocols,
                    ssl=options.tls.client if options.tls else None,
                    settings=settings,
                ) as ws:
                    await ours.hold(ws)
            except Exception as exc:
                if exc is not ours.error:
                    raise

        async with anyio.create_task_group() as tasks:
            if self.role == "client":
                async with self.listening(ours, settings, filter, options.tls is not None) as (
                    server,
                    url,
                ):
                    async with self.peer_connects(url + path, options) as end:
                        ws = await ours.connected()
                        yield Connection(ws, Far(self.portal, end), ours, server)
                        tasks.start_soon(drop_events, ws)
                    ours.leave.set()
            else:
                async with self.peer_serves(options) as listening:
                    tasks.start_soon(connect, listening.url + path)
                    ws = await ours.connected()
                    end = await call(self.portal, listening.accept)
                    yield Connection(ws, Far(self.portal, end), ours, None)
                    tasks.start_soon(drop_events, ws)
                ours.leave.set()


async def drop_events(ws: Websocket) -> None:
    """Receive to the end: a Close is seen sooner than it would be in the background."""
    with suppress(ConnectionClosed):
        async for _ in ws:
            pass
