"""An ASGI application on the library's own sockets."""

from __future__ import annotations

import logging
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio

from asyncwebsockets import ConnectionClosed, Reject, Settings, serve
from asyncwebsockets.events import AcceptConnection, Message
from asyncwebsockets.handshake import accept_headers, normalize_headers
from asyncwebsockets.server import stepping, stray_cancellations

from .lifespan import Lifespan
from .messages import (
    Accept,
    Close,
    Data,
    DenialBody,
    DenialStart,
    disconnect_message,
    read_sent,
    receive_message,
)
from .scope import scope_from_request
from .state import Phase, advance

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    import os
    import socket
    import ssl as _ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping

    from anyio.abc import TaskGroup, TaskStatus
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from asyncwebsockets import Request, Server, Websocket

    from .lifespan import Application
    from .messages import AsgiMessage, Scope

__all__ = ["ClientDisconnected", "Host", "check_root_path", "hosted", "serve_app"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")

# Responses that end with their head (RFC 9110 section 6.4.1).
_WITHOUT_BODY = frozenset((204, 304))

# The seconds an application has to end that has no connection when the server is closed, and
# once it was cancelled.
_LAST_MOMENT = 1.0


class ClientDisconnected(OSError):
    """An application sent on a connection that is gone (ASGI specification, since 2.4)."""


class Connection:
    """One connection of an application: its `receive` and `send`, and what comes of them.

    Args:
        request: the client's.
    """

    def __init__(self, request: Request) -> None:
        self.scope: anyio.CancelScope = anyio.CancelScope()
        #: Set when the application has ended.
        self.ended: anyio.Event = anyio.Event()
        self._error: Exception | None = None
        self._request = request
        self._phase = Phase.CONNECTING
        self._connect_received = False
        # Whether a call of `receive` waits for a message, and the event of its end for others.
        self._receiving = False
        self._turn: anyio.Event | None = None
        # The answer to the handshake, and the event of it or of the application's end.
        self._decision: AcceptConnection | Reject | None = None
        self._decided = anyio.Event()
        # Set when the handshake has led to a connection, or to none.
        self._settled = anyio.Event()
        self._websocket: Websocket | None = None
        self._denial: _Denial | None = None
        self._pieces: MemoryObjectSendStream[bytes] | None = None

    # For the host

    async def run(self, app: Application, scope: Scope) -> None:
        """Run the application to its end."""
        try:
            with self.scope, stray_cancellations:
                await stepping()(app(scope, self.receive, self.send))
        except Exception as exc:
            self._error = exc
        except BaseExceptionGroup as group:
            # On trio, a cancellation that goes on, together with what sends then raise.
            self._error, rest = group.split(Exception)
            assert rest is not None
            raise rest from None
        finally:
            if self._pieces is not None:
                self._pieces.close()
            self._decided.set()
            self.ended.set()

    async def decide(self) -> AcceptConnection | Reject:
        """Wait for the application's answer to the handshake.

        Raises:
            Exception: the application's own, in place of an answer.
            RuntimeError: it has returned without one.
        """
        await self._decided.wait()
        if self._decision is not None:
            return self._decision
        self._settled.set()
        raise self.take_error() or RuntimeError(
            "the application returned without answering the handshake"
        )

    def opened(self, websocket: Websocket) -> None:
        """Note that the handshake has led to a connection."""
        self._websocket = websocket
        self._settled.set()

    def lost(self) -> None:
        """Note that the handshake has not."""
        self._settled.set()

    @property
    def error(self) -> Exception | None:
        """What the application raised, unless it was told already."""
        return self._error

    def take_error(self) -> Exception | None:
        """Return what the application raised to the first who asks, so that it is told once."""
        error, self._error = self._error, None
        return error

    @property
    def gone(self) -> bool:
        """Whether the application has no connection, and nobody asks what becomes of it."""
        rejected = self._phase is Phase.CLOSED or self._settled.is_set()
        return rejected and self._websocket is None

    # For the application

    async def receive(self) -> AsgiMessage:
        """Return the next message for the application; `websocket.disconnect` again and again."""
        if not self._connect_received:
            self._connect_received = True
            return {"type": "websocket.connect"}
        websocket = self._websocket
        if websocket is None:
            await self._settled.wait()
            websocket = self._websocket
        if websocket is None:
            return disconnect_message(1006, None)
        while self._receiving:
            # Another call, of a task that may have been cancelled and not have noticed yet.
            self._turn = self._turn or anyio.Event()
            await self._turn.wait()
        self._receiving = True
        try:
            async for event in websocket:
                if isinstance(event, Message):
                    return receive_message(event.data)
        except ConnectionClosed:
            await websocket.wait_closed()
        finally:
            self._receiving = False
            if self._turn is not None:
                self._turn.set()
                self._turn = None
        return disconnect_message(websocket.close_code, websocket.close_reason)

    async def send(self, message: AsgiMessage) -> None:
        """Do what a message of the application says.

        Raises:
            TypeError, ValueError: it is not as the specification has it; nothing has changed.
            RuntimeError: it cannot be sent now; nothing has changed.
            ClientDisconnected: the connection is gone.
        """
        sent = read_sent(message)
        if self._phase is Phase.CLOSED or self.gone:
            raise ClientDisconnected("the connection is gone")
        phase = advance(self._phase, sent)
        match sent:
            case Data():
                await self._send(sent.data)
            case Accept():
                await self._accept(sent)
            case Close():
                await self._close(sent)
            case DenialStart():
                self._denial = _Denial(sent)
                self._phase = phase
            case DenialBody():
                await self._deny(sent)

    async def _accept(self, sent: Accept) -> None:
        accept = AcceptConnection(
            subprotocol=sent.subprotocol or None, extra_headers=list(sent.headers)
        )
        offered = self._request.subprotocols
        if accept.subprotocol is not None and accept.subprotocol not in offered:
            raise ValueError(
                f"expected one of the offered subprotocols {offered}, got {accept.subprotocol!r}"
            )
        accept_headers(accept)
        self._phase = Phase.OPEN
        self._decide(accept)
        await self._settled.wait()
        if self._websocket is None:
            raise ClientDisconnected("the client left before it was accepted")

    async def _send(self, data: str | bytes) -> None:
        websocket = self._websocket or await self._open()
        try:
            await websocket.send(data)
        except ConnectionClosed as exc:
            raise ClientDisconnected(f"the connection is gone: {exc}") from exc

    async def _close(self, sent: Close) -> None:
        opened = self._phase is Phase.OPEN
        self._phase = Phase.CLOSED
        if opened:
            websocket = await self._open()
            await websocket.close(sent.code, sent.reason)
        else:
            self._decide(Reject(403))

    async def _open(self) -> Websocket:
        if self._websocket is None:
            await self._settled.wait()
        if self._websocket is None:
            raise ClientDisconnected("the connection is gone")
        return self._websocket

    async def _deny(self, sent: DenialBody) -> None:
        denial = self._denial
        assert denial is not None
        denial.count(sent)
        if denial.has_no_body and sent.more_body:
            return
        if self._pieces is None and not sent.more_body:
            reject = Reject(denial.status, denial.headers, sent.body)
            self._phase = Phase.CLOSED
            self._decide(reject)
            return
        if self._pieces is None:
            self._pieces, pieces = anyio.create_memory_object_stream[bytes](0)
            self._decide(Reject(denial.status, denial.headers, self._body(pieces)))
        try:
            if sent.body:
                await self._pieces.send(sent.body)
        except anyio.BrokenResourceError:
            self._phase = Phase.CLOSED
            raise ClientDisconnected("the client left before its answer was complete") from None
        if not sent.more_body:
            self._phase = Phase.CLOSED
            self._pieces.close()

    async def _body(self, pieces: MemoryObjectReceiveStream[bytes]) -> AsyncIterator[bytes]:
        with pieces:
            async for piece in pieces:
                yield piece
        if self._phase is not Phase.CLOSED:
            raise self.take_error() or RuntimeError(
                "the application returned in the middle of a body"
            )

    def _decide(self, decision: AcceptConnection | Reject) -> None:
        self._decision = decision
        self._decided.set()


class _Denial:
    """A denial response under way: its head, and how much of its body is still to come.

    Raises:
        ValueError, TypeError: the head is none that can be sent.
    """

    def __init__(self, start: DenialStart) -> None:
        self.status = start.status
        self.has_no_body = start.status in _WITHOUT_BODY
        # How the body is framed, and what becomes of TCP, is the server's business (ASGI,
        # Response Start).
        drop = {b"transfer-encoding", b"connection", b"keep-alive"}
        if self.has_no_body:
            drop.add(b"content-length")
        self.headers = [
            (name, value)
            for name, value in normalize_headers(start.headers)
            if name.lower() not in drop
        ]
        Reject(self.status, self.headers)
        sizes = [value for name, value in self.headers if name.lower() == b"content-length"]
        if len(sizes) > 1 or not all(value.isdigit() for value in sizes):
            raise ValueError(f"expected one Content-Length, in bytes, got {sizes}")
        self._size = int(sizes[0]) if sizes else None
        self._got = 0

    def count(self, sent: DenialBody) -> None:
        """Take note of a piece of the body.

        Raises:
            ValueError: with it, the body is not as long as its Content-Length says, or there is
                none with that status.
        """
        if self.has_no_body and sent.body:
            raise ValueError(f"expected no body with status {self.status}, got {sent.body!r:.100}")
        got = self._got + len(sent.body)
        if self._size is not None and (
            got > self._size or (got < self._size and not sent.more_body)
        ):
            raise ValueError(
                f"expected a body of {self._size} bytes, as its Content-Length says, got {got}"
            )
        self._got = got


class Host:
    """Runs an application for the connections of a server: its filter and its handler.

    Args:
        app: the application.
        tasks: where it runs.
        root_path: where it is mounted, for the scope.
        state: of its lifespan.
    """

    def __init__(
        self,
        app: Application,
        tasks: TaskGroup,
        *,
        root_path: str = "",
        state: Mapping[str, Any] | None = None,
    ) -> None:
        #: Where the application runs.
        self.tasks: TaskGroup = tasks
        #: Told what the application raises, whatever becomes of it besides.
        self.on_error: Callable[[Exception], object] | None = None
        self._app = app
        self._root_path = root_path
        self._state = state
        # Those in their handshake, by their requests' identity.
        self._connections: dict[int, Connection] = {}
        self._running: set[Connection] = set()
        self._idle = anyio.Event()

    async def wait_idle(self) -> None:
        """Wait until the application runs for no connection any more."""
        while self._running:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def end(self) -> None:
        """Cancel the application wherever it still runs, and wait a moment for that."""
        for connection in self._running:
            connection.scope.cancel()
        with anyio.move_on_after(_LAST_MOMENT):
            await self.wait_idle()

    async def _run(self, connection: Connection, scope: Scope) -> None:
        try:
            await connection.run(self._app, scope)
            error = connection.error
            if self.on_error is not None and error is not None and not _is_disconnection(error):
                self.on_error(error)
            if connection.gone:
                self._log_failure(connection)
        finally:
            self._running.discard(connection)
            self._idle.set()

    async def filter(self, request: Request) -> AcceptConnection | Reject:
        """Begin to run the application, and return what it answers."""
        connection = Connection(request)
        scope = scope_from_request(request, self._root_path, self._state)
        self._connections[id(request)] = connection
        self._running.add(connection)
        self.tasks.start_soon(self._run, connection, scope)
        try:
            return await connection.decide()
        except BaseException:
            self._lost(request)
            raise

    def on_handshake_error(self, request: Request | None, error: Exception) -> None:
        """Tell the application that it has no connection."""
        if request is not None:
            self._lost(request)

    def _lost(self, request: Request) -> None:
        connection = self._connections.pop(id(request), None)
        if connection is not None:
            connection.lost()
            if connection.ended.is_set():
                self._log_failure(connection)

    async def handler(self, websocket: Websocket) -> None:
        """Hand the application its connection, and wait until it has ended.

        Raises:
            Exception: the application's own.
        """
        connection = self._connections.pop(id(websocket.request))
        connection.opened(websocket)
        try:
            await connection.ended.wait()
        except anyio.get_cancelled_exc_class():
            connection.scope.cancel()
            raise
        error = connection.take_error()
        if error is None:
            return
        if _is_disconnection(error):
            logger.debug("the application ended with the connection of %r: %s", websocket, error)
        else:
            raise error

    def _log_failure(self, connection: Connection) -> None:
        """Log what the application raised when there is no connection to be ended by it."""
        error = connection.take_error()
        if error is not None and self.on_error is None and not _is_disconnection(error):
            logger.error("the application failed without a connection", exc_info=error)


def _is_disconnection(error: BaseException) -> bool:
    """Whether it, or every leaf of a group, says that a connection is gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnection(leaf) for leaf in error.exceptions)
    return isinstance(error, ClientDisconnected)


def check_root_path(root_path: str) -> None:
    """Check what stands in front of an application's paths.

    Raises:
        ValueError: it is neither empty nor as '/app'.
    """
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise ValueError(f"expected a root path such as '/app', got {root_path!r}")


@asynccontextmanager
async def hosted(
    app: Application, *, root_path: str, lifespan: Literal["auto", "on", "off"]
) -> AsyncGenerator[Host, None]:
    """Have an application ready for connections, its lifespan that of the block.

    Raises:
        ValueError: the root path is none.
        LifespanFailed: the application says that its startup or shutdown has failed.
    """
    check_root_path(root_path)
    live = Lifespan(app, lifespan)
    error: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            await live.startup(tasks)
            host = Host(app, tasks, root_path=root_path, state=live.state)
            try:
                yield host
            except Exception as exc:
                # What the application has opened, it is to close in that case as well.
                error = exc
            await host.end()
            await live.shutdown()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:
            # Raised outside the group, which would wrap it.
            if error is not None:
                logger.error("the application's shutdown has failed as well", exc_info=exc)
            error = error or exc
        finally:
            live.close()
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error


async def serve_app(
    app: Application,
    host: str | None = None,
    port: int | None = None,
    *,
    ssl: _ssl.SSLContext | None = None,
    uds: str | os.PathLike[str] | None = None,
    sockets: Iterable[socket.socket] | None = None,
    root_path: str = "",
    lifespan: Literal["auto", "on", "off"] = "auto",
    settings: Settings | None = None,
    task_status: TaskStatus[Server] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Listen, and run an ASGI application for each WebSocket connection, until closed.

    Plain HTTP is answered with 426: for both, run hypercorn with a :class:`WebsocketApp`.

    What the application raises is logged; the client gets status 500 before its connection is
    accepted and a Close with 1011 afterwards. An application that returns closes it with 1000.

    Args:
        app: an ASGI 3 application.
        host: as in :func:`asyncwebsockets.serve`.
        port: as in :func:`asyncwebsockets.serve`.
        ssl: as in :func:`asyncwebsockets.serve`.
        uds: as in :func:`asyncwebsockets.serve`.
        sockets: as in :func:`asyncwebsockets.serve`.
        root_path: what a proxy in front has taken off the path, decoded.
        lifespan: "auto" goes on without one if the application raises on it, "on" insists on it,
            "off" does not ask for it.
        settings: as in :func:`asyncwebsockets.serve`.
        task_status: ``await task_group.start(serve_app, ...)`` returns the
            :class:`~asyncwebsockets.Server` once the application has started; its ``close``
            closes the connections, then ends the lifespan.

    Raises:
        OSError, ValueError: as :func:`asyncwebsockets.serve`.
        LifespanFailed: the application says that its startup or shutdown has failed.
    """
    async with hosted(app, root_path=root_path, lifespan=lifespan) as hosting:
        await serve(
            hosting.handler,
            host,
            port,
            filter=hosting.filter,
            ssl=ssl,
            uds=uds,
            sockets=sockets,
            settings=settings,
            on_handshake_error=hosting.on_handshake_error,
            task_status=task_status,
        )
        # Those that have no connection any more were not waited for.
        with anyio.move_on_after(_LAST_MOMENT):
            await hosting.wait_idle()
