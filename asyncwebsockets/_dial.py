"""From a URL to an open connection."""

from __future__ import annotations

import logging
import math
import ssl as _ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio

from ._cookies import cookie_header, keep_cookies, make_jar
from ._observing import UNOBSERVED, observe, tell
from ._proxy import choose_proxy
from ._redirects import is_redirect, redirect
from ._scope import Opened
from ._sockets import make_transport
from ._tls import default_context, open_tls
from ._url import parse_url
from .deflate import PerMessageDeflate
from .errors import HandshakeError, HandshakeTimeout, RedirectError, Rejected
from .handshake import ClientHandshake, HeadersLike, normalize_headers
from .transport import TransportLost

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Sequence
    from http.cookiejar import CookieJar

    from ._cookies import CookiesLike
    from ._proxy import Proxy, ProxyLike
    from ._url import WebsocketURL
    from .events import RawHeaders, Response
    from .observation import Observation
    from .settings import Settings
    from .transport import Transport

__all__ = ["Dialer", "make_handshake", "opening_deadline", "shake_hands"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")


# Without a repr: the URL, the header fields and the cookies may have secrets.
@dataclass(frozen=True, repr=False)
class Dialer:
    """Opens a connection to a URL, as often as it is asked to.

    The attributes are the arguments of :func:`open_websocket`.
    """

    url: str
    headers: HeadersLike | None
    subprotocols: Sequence[str] | None
    ssl: _ssl.SSLContext | bool | None
    settings: Settings
    proxy: ProxyLike
    cookies: CookiesLike | None
    uds: str | os.PathLike[str] | None

    async def connect(self) -> Opened:
        """Open a connection.

        Raises:
            what :func:`open_websocket` raises.
        """
        url = parse_url(self.url)
        if self.ssl is not None and not url.secure:
            raise ValueError("expected a URL of scheme wss to go with ssl, got ws")
        if self.ssl is False:
            raise ValueError("expected ssl to be None, True or an SSLContext, got False")
        if self.uds is not None and self.proxy not in (None, True):
            raise ValueError("expected a proxy or a Unix socket, got both")
        headers = normalize_headers(self.headers)
        jar = make_jar(self.cookies, url)
        deadline = opening_deadline(self.settings)
        followed = 0
        while True:
            try:
                opened = await self._attempt(url, headers, jar, deadline)
            except Rejected as exc:
                if jar is not None:
                    keep_cookies(jar, url, exc.headers)
                limit = self.settings.max_redirects
                if limit == 0 or not is_redirect(exc):
                    raise
                if followed == limit:
                    raise RedirectError(
                        f"it would be one more than max_redirects={limit}",
                        exc.status,
                        exc.headers,
                        exc.body,
                    ) from None
                url, headers = redirect(exc, url, headers, same_origin=self.uds is not None)
                followed += 1
            else:
                if jar is not None:
                    keep_cookies(jar, url, opened.response.headers)
                return opened

    async def _attempt(
        self, url: WebsocketURL, headers: RawHeaders, jar: CookieJar | None, deadline: float
    ) -> Opened:
        fields = list(headers)
        if url.authorization is not None and not _has(fields, b"authorization"):
            fields.append((b"Authorization", url.authorization.encode("ascii")))
        if jar is not None and not _has(fields, b"cookie"):
            cookies = cookie_header(jar, url)
            if cookies is not None:
                fields.append((b"Cookie", cookies))
        proxy = None if self.uds is not None else choose_proxy(self.proxy, url)
        handshake, observation = make_handshake(
            url.host_header, url.target, fields, self.subprotocols, self.settings, url.secure
        )
        opened = await shake_hands(
            lambda: self._dial(url, proxy), handshake, self.settings, deadline, observation
        )
        # What is encrypted on the way to a proxy is not for that on the way to the server.
        return replace(opened, request=replace(opened.request, secure=url.secure))

    async def _dial(self, url: WebsocketURL, proxy: Proxy | None) -> Transport:
        if self.uds is not None:
            pipe = await make_transport(await anyio.connect_unix(self.uds))
        elif proxy is not None:
            pipe = await proxy.connect(url.host, url.port)
        else:
            pipe = await make_transport(await anyio.connect_tcp(url.host, url.port))
        if not url.secure:
            return pipe
        context = self.ssl if isinstance(self.ssl, _ssl.SSLContext) else default_context()
        # A zone is of this machine only, no certificate has it.
        return await open_tls(pipe, context, url.host.partition("%")[0])


def _has(headers: RawHeaders, name: bytes) -> bool:
    return any(field.lower() == name for field, _ in headers)


def opening_deadline(settings: Settings) -> float:
    """Return when a connection that is begun now is to be open."""
    if settings.open_timeout is None:
        return math.inf
    return anyio.current_time() + settings.open_timeout


def make_handshake(
    host: str,
    target: str,
    headers: HeadersLike | None,
    subprotocols: Sequence[str] | None,
    settings: Settings,
    secure: bool,
) -> tuple[ClientHandshake, Observation]:
    """Return a handshake that offers what the settings say, and what is to be told of it.

    Args:
        host: of the Host header field.
        target: the path with its query.
        headers: additional header fields.
        subprotocols: to offer.
        settings: limits and options.
        secure: whether the connection is to be encrypted.
    """
    compression = settings.compression
    fields = normalize_headers(headers)

    def make(fields: RawHeaders) -> ClientHandshake:
        return ClientHandshake(
            host=host,
            target=target,
            headers=fields,
            subprotocols=subprotocols,
            extensions=[PerMessageDeflate(compression)] if compression is not None else [],
            max_size=settings.max_handshake_size,
        )

    handshake = make(fields)
    if settings.observer is None:
        return handshake, UNOBSERVED
    observation = observe(settings.observer, "client", replace(handshake.request, secure=secure))
    try:
        added = normalize_headers(observation.headers)
        missing = [field for field in added if not _has(fields, field[0].lower())]
        if missing:
            handshake = make([*fields, *missing])
    except (TypeError, ValueError):
        logger.exception("the observer's header fields cannot be sent")
    return handshake, observation


async def shake_hands(
    dial: Callable[[], Awaitable[Transport]],
    handshake: ClientHandshake,
    settings: Settings,
    deadline: float,
    observation: Observation,
) -> Opened:
    """Get a transport and shake hands on it."""
    try:
        return await _shake_hands(dial, handshake, settings, deadline, observation)
    except BaseException as exc:
        tell(observation.failed, exc, exc.status if isinstance(exc, Rejected) else None)
        raise


async def _shake_hands(
    dial: Callable[[], Awaitable[Transport]],
    handshake: ClientHandshake,
    settings: Settings,
    deadline: float,
    observation: Observation,
) -> Opened:
    transport: Transport | None = None
    response: Response | None = None
    try:
        with anyio.CancelScope(deadline=deadline) as scope:
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
            observation=observation,
        )
    except TransportLost as exc:
        assert transport is not None
        await transport.abort()
        raise HandshakeError(f"the connection was lost in the handshake: {exc}") from exc
    except BaseException:
        if transport is not None:
            await transport.abort()
        raise
