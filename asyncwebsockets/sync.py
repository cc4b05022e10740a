"""Connections for scripts, without ``async`` and ``await``.

::

    from asyncwebsockets.sync import connect

    with connect("wss://example.com/chat") as websocket:
        websocket.send("hello")
        print(websocket.receive_text(timeout=5))

It is the library itself, on an event loop in a thread of its own: what :class:`Websocket` says of
its methods goes for those of the same name here.
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from .client import open_websocket
from .errors import ConnectionClosedLocally
from .events import Message
from .websocket import expect_bytes, expect_json, expect_text

if TYPE_CHECKING:
    import os
    import ssl as _ssl
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from anyio.from_thread import BlockingPortal
    from wsproto.connection import ConnectionState
    from wsproto.extensions import Extension

    from ._cookies import CookiesLike
    from ._proxy import ProxyLike
    from .events import Address, Event, Request, Response
    from .handshake import HeadersLike
    from .settings import Settings
    from .websocket import Data, Websocket

__all__ = ["SyncWebsocket", "connect"]

T = TypeVar("T")

# How long the interpreter's exit may wait for the peer's Close, and an interrupted call for its
# end, in seconds.
_PATIENCE = 1.0


def connect(
    url: str,
    headers: HeadersLike | None = None,
    subprotocols: Sequence[str] | None = None,
    *,
    ssl: _ssl.SSLContext | bool | None = None,
    settings: Settings | None = None,
    proxy: ProxyLike = True,
    cookies: CookiesLike | None = None,
    uds: str | os.PathLike[str] | None = None,
    backend: str = "asyncio",
    backend_options: dict[str, Any] | None = None,
) -> SyncWebsocket:
    """Open a connection to a URL and return it.

    Close it, or use it in a ``with`` block, which closes it with 1000, or 1011 after an exception.
    One that is left open is closed with 1001 when the interpreter exits.

    Args:
        url: as in :func:`open_websocket`.
        headers: as in :func:`open_websocket`.
        subprotocols: as in :func:`open_websocket`.
        ssl: as in :func:`open_websocket`.
        settings: as in :func:`open_websocket`; ``open_timeout`` limits this call.
        proxy: as in :func:`open_websocket`.
        cookies: as in :func:`open_websocket`.
        uds: as in :func:`open_websocket`.
        backend: "asyncio" or "trio", where that is installed.
        backend_options: as :func:`anyio.run` takes them; ``{"use_uvloop": True}`` is one.

    Raises:
        what :func:`open_websocket` raises.
    """
    scope = open_websocket(
        url,
        headers,
        subprotocols,
        ssl=ssl,
        settings=settings,
        proxy=proxy,
        cookies=cookies,
        uds=uds,
    )
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal(backend, backend_options))
        websocket = stack.enter_context(portal.wrap_async_context_manager(scope))
        return SyncWebsocket(stack.pop_all(), portal, websocket)


class SyncWebsocket:
    """An open connection, as :func:`connect` returns it.

    Any number of threads may send, one at a time may receive. Calls that take a `timeout`, in
    seconds, raise :exc:`TimeoutError` after it; None waits without end. A receive that timed out
    has lost nothing.
    """

    def __init__(self, stack: ExitStack, portal: BlockingPortal, websocket: Websocket) -> None:
        self._stack = stack
        self._portal = portal
        self._websocket = websocket
        self._left = False
        # The next event, where it came as the thread that waited for it was interrupted.
        self._received: deque[Event] = deque(maxlen=1)
        # Without it, the thread of the event loop would be stopped before what waits for it.
        atexit.register(self._close_at_exit)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.request.target} {self.state.name}>"

    def _call(
        self, timeout: float | None, function: Callable[..., Awaitable[T]], *args: object
    ) -> T:
        """Call a function on the event loop; what it raises comes out as it is."""
        scope: anyio.CancelScope | None = None
        given_up = False
        ended = threading.Event()

        async def run() -> T:
            nonlocal scope
            try:
                with anyio.move_on_after(timeout) as scope:
                    if not given_up:
                        return await function(*args)
                raise TimeoutError(f"the call took longer than timeout={timeout} s")
            finally:
                ended.set()

        async def give_up() -> None:
            if scope is not None:
                scope.cancel()

        try:
            return self._start(run).result()
        except BaseException:
            if not ended.is_set():
                # It was this thread that was interrupted, by Ctrl-C for one, and may be before it
                # knew of the call. That has to be over before there is another.
                given_up = True
                with suppress(ConnectionClosedLocally):
                    self._start(give_up)
                    ended.wait(_PATIENCE)
            raise

    def _start(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        try:
            return self._portal.start_task_soon(function)
        except RuntimeError:
            # The event loop is gone.
            raise ConnectionClosedLocally(
                self.close_code or 1006, self.close_reason or ""
            ) from None

    # What it is

    @property
    def request(self) -> Request:
        """The opening handshake's request."""
        return self._websocket.request

    @property
    def response(self) -> Response:
        """The server's answer to it, with status and header fields of the 101."""
        return self._websocket.response

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on, None for none."""
        return self._websocket.subprotocol

    @property
    def extensions(self) -> Sequence[Extension]:
        """The extensions agreed on."""
        return self._websocket.extensions

    @property
    def local_address(self) -> Address:
        """This side's address."""
        return self._websocket.local_address

    @property
    def remote_address(self) -> Address:
        """The peer's address."""
        return self._websocket.remote_address

    @property
    def state(self) -> ConnectionState:
        """Where the connection stands."""
        return self._websocket.state

    @property
    def close_code(self) -> int | None:
        """How the connection ended, None while it is open."""
        return self._websocket.close_code

    @property
    def close_reason(self) -> str | None:
        """The reason of the peer's Close, or what went wrong; None while it is open."""
        return self._websocket.close_reason

    @property
    def latency(self) -> float | None:
        """The round trip in seconds of the last answered ping, None before the first."""
        return self._websocket.latency

    # Receiving

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._call(None, self._has_next):
            return self._pop()
        raise StopIteration

    async def _has_next(self) -> bool:
        if not self._received:
            event = await anext(self._websocket, None)
            if event is not None:
                self._received.append(event)
        return bool(self._received)

    def receive(self, timeout: float | None = None) -> Event:
        """Return the next event: :meth:`Websocket.receive`."""
        event: Event = self._take(timeout, object)
        return event

    def receive_text(self, timeout: float | None = None) -> str:
        """Return the next message, which is to be text: :meth:`Websocket.receive_text`."""
        return expect_text(self._take(timeout, Message), self._websocket._channel)

    def receive_bytes(self, timeout: float | None = None) -> bytes:
        """Return the next message, which is to be binary: :meth:`Websocket.receive_bytes`."""
        return expect_bytes(self._take(timeout, Message), self._websocket._channel)

    def receive_json(self, timeout: float | None = None) -> Any:
        """Return the next message, parsed as JSON: :meth:`Websocket.receive_json`."""
        return expect_json(self._take(timeout, Message), self._websocket._channel)

    def _take(self, timeout: float | None, kind: type) -> Any:
        """Return the next event of a kind; others are skipped."""
        self._call(timeout, self._receive, kind)
        return self._pop()

    def _pop(self) -> Event:
        try:
            return self._received.popleft()
        except IndexError:
            # Another thread that receives was faster.
            raise anyio.BusyResourceError("receiving from") from None

    async def _receive(self, kind: type) -> None:
        while not (self._received and isinstance(self._received[0], kind)):
            self._received.append(await self._websocket.receive())

    def iter_text(self) -> Iterator[str]:
        """Iterate over the messages, each of which is to be text: :meth:`Websocket.iter_text`."""
        for event in self:
            if isinstance(event, Message):
                yield expect_text(event, self._websocket._channel)

    def iter_bytes(self) -> Iterator[bytes]:
        """Iterate over the messages, each to be binary: :meth:`Websocket.iter_bytes`."""
        for event in self:
            if isinstance(event, Message):
                yield expect_bytes(event, self._websocket._channel)

    # Sending

    def send(self, data: Data, timeout: float | None = None) -> None:
        """Send a message: :meth:`Websocket.send`.

        One that timed out may have been sent, or else the connection is closed.
        """
        self._call(timeout, self._websocket.send, data)

    def send_json(self, data: Any, timeout: float | None = None) -> None:
        """Send a value as JSON in a text message: :meth:`Websocket.send_json`."""
        self._call(timeout, self._websocket.send_json, data)

    def ping(self, payload: bytes | str | None = None, timeout: float | None = None) -> float:
        """Send a ping and return the seconds until its pong: :meth:`Websocket.ping`."""
        return self._call(timeout, self._websocket.ping, payload)

    # Ending

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the connection has ended: :meth:`Websocket.wait_closed`."""
        self._call(timeout, self._websocket.wait_closed)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and end its thread; harmless when that has been done.

        It takes ``close_timeout`` at most: see :meth:`Websocket.close`, which also says what it
        raises.
        """
        if not self._left:
            self._call(None, self._websocket.close, code, reason)
            self._leave(None, None, None)

    def __enter__(self) -> SyncWebsocket:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._left:
            self._leave(exc_type, exc, traceback)

    def _leave(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the connection's scope, and end the event loop."""
        self._left = True
        atexit.unregister(self._close_at_exit)
        self._stack.__exit__(exc_type, exc, traceback)

    def _close_at_exit(self) -> None:
        with suppress(TimeoutError):
            self._call(_PATIENCE, self._websocket.close, 1001, "")
        self._leave(None, None, None)
