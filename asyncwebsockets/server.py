"""Serving connections: on a stream handed in, or on sockets of one's own."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import SocketAttribute, SocketListener

from ._loop import stepping, task_starter
from ._observing import UNOBSERVED, activated, observe, tell
from ._scope import Opened, WebsocketScope
from ._sockets import make_transport, open_transport, socket_opener
from ._supervisor import Supervisor
from ._tls import start_tls
from .decision import decide
from .deflate import PerMessageDeflate
from .errors import HandshakeError, HandshakeTimeout, InvalidHandshake, Rejected
from .events import AcceptConnection, Reject
from .handshake import ServerHandshake
from .observation import ServerStatistics
from .pace import Pace
from .settings import Settings
from .transport import Transport, TransportLost, as_address, linger
from .websocket import check_close

if TYPE_CHECKING:
    import ssl as _ssl
    from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
    from types import EllipsisType, TracebackType

    from anyio.abc import TaskGroup, TaskStatus

    from ._sockets import Sock
    from .events import Address, Request
    from .observation import Observation
    from .websocket import Websocket

    Filter = Callable[[Request], Awaitable[object]]
    Handler = Callable[[Websocket], Awaitable[object]]
    OnHttp = Callable[[Request], Awaitable[Reject | None]]
    OnHandshakeError = Callable[[Request | None, Exception], object]

__all__ = [
    "Server",
    "create_websocket_server",
    "open_websocket_server",
    "serve",
    "stepping",
    "stray_cancellations",
]

logger: logging.Logger = logging.getLogger("asyncwebsockets")

# The seconds in which an answer is to be written after the handshake ran out of time.
_LAST_WORDS = 1.0

# Connections beyond the limits that are told so at a time; more are cut without a word.
_MAX_REFUSALS = 64

# Connections accepted before others get a turn.
_MAX_ACCEPTED = 64

# What accept() fails with on account of one connection only (accept(2)). Anything else, such
# as a shortage of descriptors, is waited out.
_LOST = frozenset(
    (
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.ENOTCONN,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    )
)

_UPGRADE_REQUIRED = (
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade, close"),
    (b"Sec-WebSocket-Version", b"13"),
)


def open_websocket_server(
    sock: Sock, filter: Filter | None = None, *, settings: Settings | None = None
) -> WebsocketScope:
    """Serve the connection of an accepted socket, for the length of a block.

    ``async with open_websocket_server(sock) as websocket: ...``

    Leaving the block closes the connection with 1000, after an exception with 1011, after an
    :class:`UnexpectedMessage` with its code. On a cancellation Close is sent only if that needs no
    waiting.

    Args:
        sock: an anyio byte stream or a connected socket; the library owns it from here on.
        filter: an async callback that gets the :class:`Request` and returns True to accept it
            (with the first subprotocol offered), a ``str`` to accept it with that subprotocol,
            an ``AcceptConnection``; or False or None (403), a ``RejectConnection``, or a
            :class:`Reject`.
        settings: limits and options.

    Returns:
        An async context manager that gives the :class:`Websocket`. Awaiting it, as in
        ``async with await open_websocket_server(...)``, gives the manager itself.

    Raises:
        TypeError: `sock` is none of these, or the filter returned something else.
        ValueError: the filter chose a subprotocol that was not offered, or header fields that
            are not allowed. The client gets 500, as for any exception of the filter, which is
            raised as it is.
        Rejected: the filter rejected the connection.
        InvalidHandshake: the client did not send a valid opening handshake.
        HandshakeTimeout: the handshake, the filter included, took longer than ``open_timeout``.
        HandshakeError: the client left.
    """
    chosen = settings or Settings()
    return WebsocketScope(lambda: _adopt(sock, filter, chosen))


async def create_websocket_server(
    sock: Sock, filter: Filter | None = None, *, settings: Settings | None = None
) -> Websocket:
    """Serve the connection of an accepted socket; you are responsible for closing it.

    Without a scope there is no task in the background: pings are answered and a Close is seen
    only while a task receives, pings, waits for the end or closes.

    Arguments and errors are those of :func:`open_websocket_server`.
    """
    opened = await _adopt(sock, filter, settings or Settings())
    return opened.websocket(None)


async def _adopt(sock: Sock, filter: Filter | None, settings: Settings) -> Opened:
    return await _Handshaking(await make_transport(sock), filter, settings).run()


class _Handshaking:
    """One opening handshake on the server's side, with whatever answer it gets.

    Args:
        found: the transport, or what gives it; the time that takes counts.
        filter: decides, None to accept.
        settings: limits and options.
        on_http: answers plain HTTP.
        refused: answer 503 without looking at the request.
    """

    def __init__(
        self,
        found: Transport | Callable[[], Awaitable[Transport]],
        filter: Filter | None,
        settings: Settings,
        *,
        on_http: OnHttp | None = None,
        refused: bool = False,
    ) -> None:
        self._found = found
        self._filter = filter
        self._settings = settings
        self._on_http = on_http
        self._refused = refused
        # Around what may have to wait.
        self._scope: anyio.CancelScope | None = None
        self._drained = False
        self._request: Request | None = None
        # What is wrong with it.
        self._error: HandshakeError | None = None
        # The connection, once its 101 is written.
        self._opened: Opened | None = None
        # Bytes that came behind the request while the filter ran.
        self._early = bytearray()
        # Whether anything has come. One who has asked nothing gets no answer: a browser that opens
        # a connection ahead of need would take it for that to its request (RFC 9112 section 9.2).
        self._begun = False
        self._answering = False
        self._broke_off = False
        self._failure: Exception | None = None
        self._plain = False
        self._observation = UNOBSERVED
        # Of the response that was sent in place of a connection.
        self._status: int | None = None

    @property
    def failure(self) -> Exception | None:
        """What the user's code raised, of whatever class: filter, body of an answer, on_http."""
        return self._failure

    @property
    def broke_off(self) -> bool:
        """Whether it was raised in the middle of an answer."""
        return self._broke_off

    @property
    def request(self) -> Request | None:
        """The client's request, None before it has come."""
        return self._request

    @property
    def plain(self) -> bool:
        """Whether it was plain HTTP, and on_http has answered it."""
        return self._plain

    @property
    def observation(self) -> Observation:
        """What is told of the handshake and of its connection."""
        return self._observation

    def drain(self) -> None:
        """Answer 503, because the server closes."""
        self._drained = True
        if self._scope is not None:
            self._scope.cancel()

    async def run(self) -> Opened:
        """Shake hands. Unless it returns, the transport is closed in the end."""
        try:
            return await self._run()
        except BaseException as exc:
            tell(self._observation.failed, exc, self._status)
            raise

    async def _run(self) -> Opened:
        settings = self._settings
        transport: Transport | None = None
        handshake: ServerHandshake | None = None
        result: Opened | BaseException | None = None
        try:
            if isinstance(self._found, Transport):
                transport = self._found
                handshake = self._begin(transport)
                if self._opened is not None and not (transport.clogged or transport.unsent):
                    return self._opened
            with anyio.move_on_after(settings.open_timeout) as self._scope:
                if self._drained:
                    self._scope.cancel()
                if not isinstance(self._found, Transport):
                    transport = await self._found()
                    handshake = self._begin(transport)
                assert transport is not None
                assert handshake is not None
                result = await self._attempt(transport, handshake)
            if result is None:
                result = self._out_of_time()
                if (
                    transport is not None
                    and handshake is not None
                    and self._begun
                    and not self._answering
                ):
                    status = result.status if isinstance(result, Rejected) else 408
                    if self._request is not None:
                        status = 503
                    with anyio.move_on_after(_LAST_WORDS):
                        await self._answer(transport, handshake, Reject(status))
            if isinstance(result, Opened):
                return result
            if transport is not None:
                await linger(transport, settings.close_timeout)
            raise result
        except TransportLost as exc:
            if transport is not None:
                await transport.abort()
            if isinstance(result, BaseException):
                raise result from None
            raise HandshakeError(f"the connection was lost in the handshake: {exc}") from exc
        except BaseException:
            if transport is not None:
                await transport.abort()
            raise

    def _out_of_time(self) -> HandshakeError:
        if self._drained:
            return Rejected(503)
        return HandshakeTimeout(
            f"the handshake took longer than open_timeout={self._settings.open_timeout:g} s"
        )

    def _begin(self, transport: Transport) -> ServerHandshake:
        """Read the request if it is there already, and accept it if nobody is to be asked."""
        handshake = ServerHandshake(
            max_size=self._settings.max_handshake_size,
            local_address=transport.local_address,
            remote_address=transport.remote_address,
            secure=transport.secure,
        )
        if not (self._drained or self._refused or transport.pace.due(0)):
            data = transport.receive_nowait()
            if data:
                self._begun = True
                try:
                    self._request = handshake.receive_data(data)
                except HandshakeError as exc:
                    self._error = exc
        if self._request is not None and handshake.upgrade and self._filter is None:
            self._observation = observe(self._settings.observer, "server", self._request)
            decision = decide(True, self._request)
            assert isinstance(decision, AcceptConnection)
            self._opened = self._accept(transport, handshake, decision)
        return handshake

    async def _attempt(
        self, transport: Transport, handshake: ServerHandshake
    ) -> Opened | BaseException:
        """Return the connection, or what is to be raised after the answer was sent."""
        try:
            if self._opened is None:
                decision = await self._decide(transport, handshake)
                if isinstance(decision, Reject):
                    await self._answer(transport, handshake, decision)
                    body = decision.body if isinstance(decision.body, bytes) else b""
                    return Rejected(decision.status, _as_raw(decision), body)
                self._opened = self._accept(transport, handshake, decision)
            await transport.drain()
            return self._opened
        except _UsersError as exc:
            self._failure = exc.error
            self._broke_off = self._answering
            if not self._answering:
                await self._answer(transport, handshake, Reject(500))
            return exc.error
        except InvalidHandshake as exc:
            explanation = f"{exc}\n".encode()
            headers = [*exc.headers, (b"Content-Type", b"text/plain; charset=utf-8")]
            await self._answer(transport, handshake, Reject(exc.status, headers, explanation))
            return exc
        except (TransportLost, HandshakeError):
            raise
        except Exception as exc:
            # What the filter returned cannot be sent.
            if not self._answering:
                await self._answer(transport, handshake, Reject(500))
            return exc

    def _accept(
        self, transport: Transport, handshake: ServerHandshake, decision: AcceptConnection
    ) -> Opened:
        """Write the 101."""
        assert self._request is not None
        data, response, extensions = handshake.accept(decision, self._extensions(decision))
        self._answering = True
        transport.write(data)
        return Opened(
            transport=transport,
            role="server",
            settings=self._settings,
            request=self._request,
            response=response,
            subprotocol=decision.subprotocol,
            extensions=extensions,
            trailing_data=handshake.trailing_data + self._early,
            observation=self._observation,
        )

    def _extensions(self, decision: AcceptConnection) -> Sequence[Any]:
        if decision.extensions:
            return PerMessageDeflate.replacing(decision.extensions)
        compression = self._settings.compression
        return [PerMessageDeflate(compression)] if compression is not None else []

    async def _decide(
        self, transport: Transport, handshake: ServerHandshake
    ) -> AcceptConnection | Reject:
        if self._refused:
            return Reject(503, [(b"Retry-After", b"1")])
        if self._error is not None:
            raise self._error
        request = self._request
        while request is None:
            data = await transport.receive()
            self._begun = self._begun or bool(data)
            request = handshake.receive_data(data)
        self._request = request
        if not handshake.upgrade:
            answer = None
            if self._on_http is not None:
                with _users_code():
                    answer = await self._on_http(request)
            if answer is not None:
                self._plain = True
                return answer
            if request.method == "HEAD":
                raise InvalidHandshake("expected the method GET", 405, [(b"Allow", b"GET")])
            raise InvalidHandshake("expected a WebSocket handshake", 426, _UPGRADE_REQUIRED)
        self._observation = observe(self._settings.observer, "server", request)
        if self._filter is None:
            return decide(True, request)
        return decide(await self._ask(self._filter, request, transport), request)

    async def _ask(self, filter: Filter, request: Request, transport: Transport) -> object:
        """Run the filter, unless the client leaves."""
        result: object = None
        error: BaseException | None = None
        done = False
        limit = self._settings.max_handshake_size

        async def watch() -> None:
            with contextlib.suppress(TransportLost):
                while limit is None or len(self._early) < limit:
                    data = await transport.receive()
                    if not data:
                        break
                    self._early.extend(data)
                else:
                    return
            task_group.cancel_scope.cancel()

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(watch)
            try:
                with _users_code(), activated(self._observation):
                    result = await filter(request)
                done = True
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as exc:
                # Raised outside the group, which would wrap it.
                error = exc
            task_group.cancel_scope.cancel()
        if error is not None:
            raise error
        if not done:
            raise TransportLost("the client left while the filter ran")
        return result

    async def _answer(
        self, transport: Transport, handshake: ServerHandshake, response: Reject
    ) -> None:
        """Send an HTTP response in place of a connection, if the client is still there."""
        head = handshake.reject(response)
        self._answering = True
        self._status = response.status
        with contextlib.suppress(TransportLost):
            if isinstance(response.body, bytes):
                body = handshake.reject_body(response.body) if response.body else b""
                await transport.send(head + body + handshake.reject_body(None))
                return
            await transport.send(head)
            async with response.pieces() as pieces:
                while True:
                    with _users_code():
                        piece = await anext(pieces, None)
                    if piece is None:
                        break
                    data = handshake.reject_body(piece)
                    if data:
                        await transport.send(data)
            end = handshake.reject_body(None)
            if end:
                await transport.send(end)


class _StrayCancellations:
    """Turns a cancellation that nobody here has asked for into an error of the code within.

    On asyncio, an awaited task that was cancelled raises CancelledError in the one who awaits
    it; that must not look like the end of the whole server.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if (
            exc is not None
            and isinstance(exc, anyio.get_cancelled_exc_class())
            and anyio.current_effective_deadline() != -math.inf
        ):
            raise RuntimeError("a cancellation came out of something that was awaited") from exc


#: ``with stray_cancellations: ...``
stray_cancellations: _StrayCancellations = _StrayCancellations()


class _UsersError(Exception):
    """Carries an exception of the user's code past the places where its class means another."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def _users_code() -> Generator[None, None, None]:
    """Mark what the user's code within raises: a client's handshake may be what fails there."""
    try:
        with stray_cancellations:
            yield
    except Exception as exc:
        raise _UsersError(exc) from None


def _as_raw(response: Reject) -> list[tuple[bytes, bytes]]:
    return [
        (
            name if isinstance(name, bytes) else name.encode("latin-1"),
            value if isinstance(value, bytes) else value.encode("latin-1"),
        )
        for name, value in response.headers
    ]


# The fields of ServerStatistics that count what has happened, and those that add up.
_EVENTS = ("accepted", "refused", "answered", "rejected", "failed", "opened")
_TRAFFIC = (
    "bytes_received",
    "bytes_sent",
    "messages_received",
    "messages_sent",
    "pings_received",
    "pings_sent",
)


def _kind_of(handshake: _Handshaking, error: Exception) -> str:
    """Return what a handshake that came to nothing counts as."""
    if isinstance(error, Rejected) and handshake.failure is None:
        return "answered" if handshake.plain else "rejected"
    return "failed"


def _add_traffic(totals: Counter[str], websocket: Websocket) -> None:
    statistics = websocket.statistics
    for name in _TRAFFIC:
        totals[name] += getattr(statistics, name)


class Server:
    """A running :func:`serve`."""

    def __init__(
        self,
        handler: Handler,
        filter: Filter | None,
        settings: Settings,
        ssl: _ssl.SSLContext | None,
        on_http: OnHttp | None,
        on_handshake_error: OnHandshakeError | None,
        listeners: Sequence[SocketListener],
        task_group: TaskGroup,
    ) -> None:
        self._handler = handler
        self._filter = filter
        self._settings = settings
        self._ssl = ssl
        self._on_http = on_http
        self._on_handshake_error = on_handshake_error
        self._listeners = listeners
        self._task_group = task_group
        self._start_soon = task_starter(task_group)
        self._supervisor = Supervisor(task_group)
        self._pace = Pace.current()
        self._opener = socket_opener() if ssl is None else None
        self._stepped = stepping()
        self._websockets: set[Websocket] = set()
        self._handshakes: set[_Handshaking] = set()
        self._refusals = 0
        # Connections there are, whatever they are at.
        self._count = 0
        self._idle = anyio.Event()
        self._closing = anyio.Event()
        self._closed = anyio.Event()
        self._drain_with = (1012, "")
        self._grace = anyio.CancelScope()
        # What has happened, by the names of ServerStatistics; of traffic, that of connections that
        # have ended.
        self._totals: Counter[str] = Counter()

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, as ``(host, port)`` or the path of a Unix socket."""
        return [
            as_address(listener.extra(SocketAttribute.local_address))
            for listener in self._listeners
        ]

    @property
    def port(self) -> int:
        """The TCP port it listens on, the first one if there are several.

        Raises:
            ValueError: it listens on Unix sockets only.
        """
        for address in self.addresses:
            if isinstance(address, tuple):
                return address[1]
        raise ValueError(f"expected a TCP listener, got {self.addresses}")

    @property
    def connections(self) -> frozenset[Websocket]:
        """The open connections."""
        return frozenset(self._websockets)

    @property
    def statistics(self) -> ServerStatistics:
        """What it has done so far, and what has come and gone on all its connections."""
        totals = self._totals.copy()
        for websocket in self.connections:
            _add_traffic(totals, websocket)
        return ServerStatistics(
            **{name: totals[name] for name in (*_EVENTS, *_TRAFFIC)},
            handshaking=len(self._handshakes),
            open=len(self._websockets),
        )

    async def close(
        self, code: int = 1012, reason: str = "", grace: float | None | EllipsisType = ...
    ) -> None:
        """Stop serving, and wait until that is done.

        It stops accepting, closes the open connections with `code`, answers 503 to those in
        their handshake, gives the handlers `grace` seconds to end, and cancels the rest. A
        handler that calls it is waited for as well: let it start a task for that, or return.

        Args:
            code: as in :meth:`Websocket.close`.
            reason: as in :meth:`Websocket.close`.
            grace: seconds, None for no limit; ``drain_timeout`` by default. A second call may
                shorten it.

        Raises:
            ValueError: the code may not be sent, or the reason is too long.
        """
        code = check_close(code, reason)
        if grace is ...:
            grace = self._settings.drain_timeout
        if not self._closing.is_set():
            self._drain_with = (code, reason)
            self._closing.set()
        if grace is not None:
            deadline = anyio.current_time() + grace
            self._grace.deadline = min(self._grace.deadline, deadline)
        await self._closed.wait()

    async def run(self) -> None:
        """Serve until closed."""
        tasks = self._task_group
        try:
            tasks.start_soon(self._supervisor.run)
            for listener in self._listeners:
                tasks.start_soon(self._accept, listener)
            await self._closing.wait()
            await self._drain()
        finally:
            self._closed.set()

    async def _drain(self) -> None:
        code, reason = self._drain_with
        for listener in self._listeners:
            anyio.notify_closing(listener.extra(SocketAttribute.raw_socket))
            await listener.aclose()
        with self._grace:
            for handshake in self._handshakes:
                handshake.drain()
            for websocket in self._websockets:
                self._task_group.start_soon(websocket.close, code, reason)
            while self._count:
                self._idle = anyio.Event()
                await self._idle.wait()

    # Accepting

    async def _accept(self, listener: SocketListener) -> None:
        listening = listener.extra(SocketAttribute.raw_socket)
        while not self._closing.is_set():
            try:
                await anyio.wait_readable(listening)
                for _ in range(_MAX_ACCEPTED):
                    self._take(*listening.accept())
            except (BlockingIOError, InterruptedError):
                continue
            except anyio.ClosedResourceError:
                return
            except OSError as exc:
                if self._closing.is_set():
                    return
                if exc.errno in _LOST:
                    logger.debug("a connection was lost before it was accepted: %s", exc)
                else:
                    logger.warning("cannot accept connections for now: %s", exc)
                    await anyio.sleep(0.1)

    def _take(self, sock: socket.socket, address: Any) -> None:
        self._count += 1
        self._totals["accepted"] += 1
        if self._over_limit():
            self._totals["refused"] += 1
            self._start_soon(self._refuse, sock)
        else:
            found: Transport | Callable[[], Awaitable[Transport]]
            if self._opener is not None:
                found = self._opener(sock, b"", as_address(address))
            else:
                found = self._dialler(sock)
            handshake = _Handshaking(found, self._filter, self._settings, on_http=self._on_http)
            self._handshakes.add(handshake)
            self._start_soon(self._run, handshake)

    def _over_limit(self) -> bool:
        settings = self._settings
        handshakes = len(self._handshakes)
        return (settings.max_handshakes is not None and handshakes >= settings.max_handshakes) or (
            settings.max_connections is not None
            and handshakes + len(self._websockets) >= settings.max_connections
        )

    def _dialler(self, sock: socket.socket) -> Callable[[], Awaitable[Transport]]:
        async def dial() -> Transport:
            pipe = await open_transport(sock)
            if self._ssl is None:
                return pipe
            try:
                return await start_tls(pipe, self._ssl, server_side=True)
            except (TransportLost, OSError) as exc:
                await pipe.abort()
                raise HandshakeError(f"the TLS handshake failed: {exc}") from exc
            except BaseException:
                await pipe.abort()
                raise

        return dial

    async def _refuse(self, sock: socket.socket) -> None:
        try:
            if self._refusals >= _MAX_REFUSALS:
                sock.close()
                return
            self._refusals += 1
            try:
                await _Handshaking(self._dialler(sock), None, self._settings, refused=True).run()
            except HandshakeError as exc:
                logger.debug("a connection was refused, there are too many: %s", exc)
            finally:
                self._refusals -= 1
        finally:
            self._gone()

    # Running

    async def _run(self, handshake: _Handshaking) -> None:
        # A task that begins has had its turn of the loop.
        self._pace.reset()
        try:
            websocket = await self._shake_hands(handshake)
            observation = handshake.observation
            # It is not needed for as long as the connection is open.
            del handshake
            if websocket is not None:
                await self._handle(websocket, observation)
        finally:
            self._gone()

    async def _shake_hands(self, handshake: _Handshaking) -> Websocket | None:
        try:
            opened = await handshake.run()
        except Exception as exc:
            if isinstance(exc, HandshakeError) and handshake.failure is None:
                logger.debug("a handshake came to nothing: %s", exc)
            else:
                answer = "a part of an answer" if handshake.broke_off else "status 500"
                logger.exception("a handshake failed here; the client got %s", answer)
            self._totals[_kind_of(handshake, exc)] += 1
            self._report(handshake, exc)
            return None
        finally:
            self._handshakes.discard(handshake)
        self._totals["opened"] += 1
        return opened.websocket(self._supervisor)

    def _report(self, handshake: _Handshaking, error: Exception) -> None:
        if self._on_handshake_error is not None:
            self._on_handshake_error(handshake.request, error)

    async def _handle(self, websocket: Websocket, observation: Observation) -> None:
        self._websockets.add(websocket)
        if self._closing.is_set():
            self._task_group.start_soon(websocket.close, *self._drain_with)
        try:
            async with websocket:
                try:
                    with activated(observation), stray_cancellations:
                        await self._stepped(self._handler(websocket))
                except anyio.get_cancelled_exc_class():
                    if self._closing.is_set():
                        await websocket.abort(self._drain_with[0])
                    raise
        except Exception as exc:
            if websocket.is_peers_doing(exc):
                logger.debug("the handler of %r was ended by its peer: %s", websocket, exc)
            else:
                logger.exception("the handler of %r failed", websocket)
        finally:
            self._websockets.discard(websocket)
            _add_traffic(self._totals, websocket)

    def _gone(self) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()


async def serve(
    handler: Handler,
    host: str | None = None,
    port: int | None = None,
    *,
    filter: Filter | None = None,
    ssl: _ssl.SSLContext | None = None,
    uds: str | os.PathLike[str] | None = None,
    sockets: Iterable[socket.socket] | None = None,
    settings: Settings | None = None,
    on_http: OnHttp | None = None,
    on_handshake_error: OnHandshakeError | None = None,
    task_status: TaskStatus[Server] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Listen, and run ``handler(websocket)`` for each connection, until closed or cancelled.

    A connection is closed with 1000 when its handler returns. An exception of a handler is
    logged and closes that connection with 1011; the connection's own ``ConnectionClosed`` is
    its normal end, and its ``UnexpectedMessage`` closes it with 1003, or 1007 for what is not
    JSON, without a record. A cancellation of `serve` cancels the handlers.

    Args:
        handler: an async function that gets the :class:`Websocket`.
        host: where to listen, all interfaces by default.
        port: 0 lets the system choose.
        filter: as in :func:`open_websocket_server`; an exception of it is logged.
        ssl: a context with the server's certificate, for ``wss``.
        uds: the path of a Unix socket, in place of host and port.
        sockets: listening sockets, in place of host and port; they are closed in the end.
        settings: limits and options.
        on_http: an async function that answers plain HTTP (GET and HEAD), for health checks: it
            gets the :class:`Request` and returns a :class:`Reject`, of status 200 if you like,
            or None for the usual 426.
        on_handshake_error: a function that is told of each handshake that came to nothing, the
            filter's rejections among them: it gets the :class:`Request`, None if there was
            none, and the exception. What the filter was given is the same object.
        task_status: ``await task_group.start(serve, ...)`` returns the :class:`Server`.

    Raises:
        OSError: it cannot listen there.
        ValueError: not exactly one of `port`, `uds` and `sockets` was given.
    """
    if sum(given is not None for given in (port, uds, sockets)) != 1:
        raise ValueError("expected exactly one of port, uds and sockets")
    if host is not None and port is None:
        raise ValueError("expected a port with the host")
    listeners = await _listen(host, port, uds, sockets)
    own = _identity(uds) if uds is not None else None
    try:
        async with anyio.create_task_group() as task_group:
            server = Server(
                handler,
                filter,
                settings or Settings(),
                ssl,
                on_http,
                on_handshake_error,
                listeners,
                task_group,
            )
            task_status.started(server)
            await server.run()
            task_group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            for listener in listeners:
                await listener.aclose()
            if uds is not None and own is not None and _identity(uds) == own:
                os.unlink(uds)


async def _listen(
    host: str | None,
    port: int | None,
    uds: str | os.PathLike[str] | None,
    sockets: Iterable[socket.socket] | None,
) -> list[SocketListener]:
    if uds is not None:
        # Cancelled half way, it would leave the socket's file.
        with anyio.CancelScope(shield=True):
            return [await anyio.create_unix_listener(uds)]
    if sockets is not None:
        ready = list(sockets)
        for sock in ready:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError(f"expected sockets that listen, got {sock}")
        # Cancelled half way, it would leave some of them open.
        with anyio.CancelScope(shield=True):
            return [await SocketListener.from_socket(sock) for sock in ready]
    assert port is not None
    multi = await anyio.create_tcp_listener(local_host=host, local_port=port)
    return [listener for listener in multi.listeners if isinstance(listener, SocketListener)]


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return what tells a socket's file from another one at the same path."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
