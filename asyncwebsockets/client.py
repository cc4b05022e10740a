"""Opening connections as a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._dial import Dialer, make_handshake, opening_deadline, shake_hands
from ._scope import WebsocketScope
from ._sockets import make_transport
from ._url import encode_host, format_host
from .settings import Settings

if TYPE_CHECKING:
    import os
    import ssl as _ssl
    from collections.abc import Sequence

    from ._cookies import CookiesLike
    from ._proxy import ProxyLike
    from ._scope import Opened
    from ._sockets import Sock
    from .handshake import HeadersLike
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
    proxy: ProxyLike = True,
    cookies: CookiesLike | None = None,
    uds: str | os.PathLike[str] | None = None,
) -> WebsocketScope:
    """Open a connection to a URL, for the length of a block.

    ``async with open_websocket("wss://example.com/chat") as websocket: ...``

    Redirects are followed, as ``settings.max_redirects`` says; header fields with credentials
    stay behind where one leads to another origin, and none leads from ``wss`` to ``ws``.

    Leaving the block closes the connection with 1000, after an exception with 1011, after an
    :class:`UnexpectedMessage` with its code. On a cancellation Close is sent only if that needs no
    waiting.

    Args:
        url: of scheme ``ws`` or ``wss``. Userinfo in it becomes Basic authentication.
        headers: additional header fields; a Host among them replaces ours.
        subprotocols: to offer, in order of preference.
        ssl: None or True for a context that verifies the server and its host name, or a
            context of your own.
        settings: limits and options.
        proxy: the URL of an HTTP or SOCKS proxy or a :class:`Proxy`; True for what the
            environment says (``wss_proxy``, ``https_proxy``, ``no_proxy`` and their like), None
            to connect directly.
        cookies: an :class:`http.cookiejar.CookieJar`, of which those for the URL are sent, and
            which takes what the server sets, in a rejection as well; or names and values to
            send to the URL's host. A Cookie among `headers` is sent in their place.
        uds: the path of a Unix socket to connect to. The URL then says what is asked for, and
            with ``wss`` whose certificate is expected. No proxy is used.

    Returns:
        An async context manager that gives the :class:`Websocket`. Awaiting it, as in
        ``async with await open_websocket(...)``, gives the manager itself.

    Raises:
        ValueError: the URL, a header field, a subprotocol, a cookie or the proxy is not
            allowed, or `ssl` is given with a ``ws`` URL.
        OSError, ssl.SSLError: name resolution, TCP or TLS failed.
        ProxyError: the proxy did not make the connection.
        Rejected: the server answered with another status than 101. If it is a redirect that
            was not followed, a :exc:`RedirectError`.
        InvalidHandshake: the server's answer is not a valid one.
        HandshakeError: the connection was lost.
        HandshakeTimeout: all that took longer than ``open_timeout``.
    """
    dialer = Dialer(url, headers, subprotocols, ssl, settings or Settings(), proxy, cookies, uds)
    return WebsocketScope(dialer.connect)


async def create_websocket(
    url: str,
    ssl: _ssl.SSLContext | bool | None = None,
    headers: HeadersLike | None = None,
    subprotocols: Sequence[str] | None = None,
    *,
    settings: Settings | None = None,
    proxy: ProxyLike = True,
    cookies: CookiesLike | None = None,
    uds: str | os.PathLike[str] | None = None,
) -> Websocket:
    """Open a connection to a URL; you are responsible for closing it.

    Without a scope there is no task in the background: pings are answered and a Close is seen
    only while a task receives, pings, waits for the end or closes.

    Arguments and errors are those of :func:`open_websocket`, in the order of the original.
    """
    dialer = Dialer(url, headers, subprotocols, ssl, settings or Settings(), proxy, cookies, uds)
    opened = await dialer.connect()
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
        handshake, observation = make_handshake(
            host, path, headers, subprotocols, settings, transport.secure
        )
    except BaseException:
        await transport.abort()
        raise

    async def ready() -> Transport:
        return transport

    return await shake_hands(ready, handshake, settings, opening_deadline(settings), observation)
