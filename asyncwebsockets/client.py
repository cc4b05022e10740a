"""Opening connections as a client."""

from __future__ import annotations

import ssl as _ssl
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import anyio

from ._scope import Opened, WebsocketScope
from ._sockets import make_transport
from ._tls import start_tls
from ._url import encode_host, format_host, parse_url
from .deflate import PerMessageDeflate
from .errors import HandshakeError, HandshakeTimeout, Rejected
from .handshake import ClientHandshake, HeadersLike, normalize_headers
from .settings import Settings
from .transport import TransportLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._sockets import Sock
    from .events import Response
    from .transport import Transport
    from .websocket import Websocket

__all__ = [
    "create_websocket",
    "create_websocket_client",
    "open_websocket",
    "open_websocket_client",
]


def open_websocket(
    url: str,
    headers: HeadersLike | None = None,
    subprotocols: Sequence[str] | None = None,
    *,
    ssl: _ssl.SSLContext | bool | None = None,
    settings: Settings | None = None,
) -> WebsocketScope:
    """Open a connection to a URL, for the length of a block.

    ``async with open_websocket("wss://example.com/chat") as websocket: ...``

    Leaving the block closes the connection with 1000, after an exception with 1011. On a
    cancellation Close is sent only if that needs no waiting.

    Args:
        url: of scheme ``ws`` or ``wss``. Userinfo in it becomes Basic authentication.
        headers: additional header fields; a Host among them replaces ours.
        subprotocols: to offer, in order of preference.
        ssl: None or True for a context that verifies the server and its host name, or a
            context of your own.
        settings: limits and options.

    Returns:
        An async context manager that gives the :class:`Websocket`. Awaiting it, as in
        ``async with await open_websocket(...)``, gives the manager itself.

    Raises:
        ValueError: the URL, a header field or a subprotocol is not allowed, or `ssl` is given
            with a ``ws`` URL.
        OSError, ssl.SSLError: name resolution, TCP or TLS failed.
        Rejected: the server answered with another status than 101.
        InvalidHandshake: the server's answer is not a valid one.
        HandshakeTimeout: all that took longer than ``open_timeout``.
    """
    chosen = settings or Settings()

    return WebsocketScope(lambda: _connect(url, headers, subprotocols, ssl, chosen))


async def create_websocket(
    url: str,
    ssl: _ssl.SSLContext | bool | None = None,
    headers: HeadersLike | None = None,
    subprotocols: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
) -> Websocket:
    """Open a connection to a URL; you are responsible for closing it.

    Without a scope there is no task in the background: pings are answered and a Close is seen
    only while a task receives, pings, waits for the end or closes.

    Arguments and errors are those of :func:`open_websocket`, in the order of the original.
    """
    opened = await _connect(url, headers, subprotocols, ssl, settings or Settings())
    return opened.websocket(None)


def open_websocket_client(
    sock: Sock,
    addr: tuple[str, int] | str,
    path: str,
    headers: HeadersLike | None = None,
    subprotocols: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
) -> WebsocketScope:
    """Open a connection as a client on a stream that is connected already.

    Args:
        sock: an anyio byte stream or a connected socket; the library owns it from here on.
        addr: ``(host, port)`` or a string, for the Host header field only; a default port is
            left out.
        path: the request target, with its query.
        headers: as in :func:`open_websocket`.
        subprotocols: as in :func:`open_websocket`.
        settings: as in :func:`open_websocket`.

    Returns:
        As :func:`open_websocket`.

    Raises:
        TypeError: `sock` is none of these.
        ValueError, Rejected, InvalidHandshake, HandshakeTimeout: as :func:`open_websocket`.
        HandshakeError: the connection broke.
    """
    chosen = settings or Settings()

    return WebsocketScope(lambda: _adopt(sock, addr, path, headers, subprotocols, chosen))


async def create_websocket_client(
    sock: Sock,
    addr: tuple[str, int] | str,
    path: str,
    headers: HeadersLike | None = None,
    subprotocols: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
) -> Websocket:
    """Open a connection as a client on a stream; you are responsible for closing it.

    As :func:`open_websocket_client`, without a scope: see :func:`create_websocket`.
    """
    opened = await _adopt(sock, addr, path, headers, subprotocols, settings or Settings())
    return opened.websocket(None)


async def _connect(
    url: str,
    headers: HeadersLike | None,
    subprotocols: Sequence[str] | None,
    ssl: _ssl.SSLContext | bool | None,
    settings: Settings,
) -> Opened:
    parts = parse_url(url)
    if ssl is not None and not parts.secure:
        raise ValueError("expected a URL of scheme wss to go with ssl, got ws")
    if ssl is False:
        raise ValueError("expected ssl to be None, True or an SSLContext, got False")
    fields = normalize_headers(headers)
    if parts.authorization is not None and not any(
        name.lower() == b"authorization" for name, _ in fields
    ):
        fields.append((b"Authorization", parts.authorization.encode("ascii")))
    handshake = _handshake(parts.host_header, parts.target, fields, subprotocols, settings)

    async def dial() -> Transport:
        pipe = await make_transport(await anyio.connect_tcp(parts.host, parts.port))
        if not parts.secure:
            return pipe
        context = ssl if isinstance(ssl, _ssl.SSLContext) else _default_context()
        # A zone is of this machine only, no certificate has it.
        hostname = parts.host.partition("%")[0]
        try:
            return await start_tls(pipe, context, hostname=hostname)
        except TransportLost as exc:
            await pipe.abort()
            raise HandshakeError(f"the TLS handshake failed: {exc}") from exc
        except BaseException:
            await pipe.abort()
            raise

    return await _open(dial, handshake, settings)


async def _adopt(
    sock: Sock,
    addr: tuple[str, int] | str,
    path: str,
    headers: HeadersLike | None,
    subprotocols: Sequence[str] | None,
    settings: Settings,
) -> Opened:
    transport = await make_transport(sock)
    try:
        if isinstance(addr, str):
            host = addr
        else:
            host = format_host(encode_host(addr[0]), addr[1], secure=transport.secure)
        handshake = _handshake(host, path, headers, subprotocols, settings)
    except BaseException:
        await transport.abort()
        raise

    async def ready() -> Transport:
        return transport

    return await _open(ready, handshake, settings)


@cache
def _default_context() -> _ssl.SSLContext:
    context = _ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _handshake(
    host: str,
    target: str,
    headers: HeadersLike | None,
    subprotocols: Sequence[str] | None,
    settings: Settings,
) -> ClientHandshake:
    compression = settings.compression
    return ClientHandshake(
        host=host,
        target=target,
        headers=headers,
        subprotocols=subprotocols,
        extensions=[PerMessageDeflate(compression)] if compression is not None else [],
        max_size=settings.max_handshake_size,
    )


async def _open(
    dial: Callable[[], Awaitable[Transport]], handshake: ClientHandshake, settings: Settings
) -> Opened:
    """Get a transport and shake hands on it."""
    transport: Transport | None = None
    response: Response | None = None
    try:
        with anyio.move_on_after(settings.open_timeout) as scope:
            transport = await dial()
            await transport.send(handshake.request_data)
            while response is None:
                response = handshake.receive_data(await transport.receive())
        if scope.cancelled_caught and response is None:
            response = handshake.partial_response
            if response is None:
                raise HandshakeTimeout(
                    f"the handshake took longer than open_timeout={settings.open_timeout:g} s"
                )
        assert transport is not None
        assert response is not None
        if response.status != 101:
            raise Rejected(response.status, response.headers, handshake.body)
        return Opened(
            transport=transport,
            role="client",
            settings=settings,
            request=replace(
                handshake.request,
                local_address=transport.local_address,
                remote_address=transport.remote_address,
                secure=transport.secure,
            ),
            response=response,
            subprotocol=handshake.subprotocol,
            extensions=handshake.extensions,
            trailing_data=handshake.trailing_data,
        )
    except TransportLost as exc:
        assert transport is not None
        await transport.abort()
        raise HandshakeError(f"the connection was lost in the handshake: {exc}") from exc
    except BaseException:
        if transport is not None:
            await transport.abort()
        raise
