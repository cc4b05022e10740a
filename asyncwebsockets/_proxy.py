"""Tunnels through proxies: HTTP's CONNECT, and SOCKS."""

from __future__ import annotations

import base64
import math
import urllib.request
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

import anyio
import h11

from ._sockets import make_transport
from ._tls import default_context, open_tls
from ._url import encode_host
from .errors import ProxyError
from .handshake import HeadersLike, normalize_headers
from .transport import TransportLost

if TYPE_CHECKING:
    import ssl as _ssl

    from ._url import WebsocketURL
    from .events import RawHeaders
    from .transport import Transport

__all__ = ["Proxy", "ProxyLike", "choose_proxy"]

#: What `open_websocket` takes as a proxy: its URL, a `Proxy`, True for what the environment
#: says, None for none.
ProxyLike: TypeAlias = "Proxy | str | Literal[True] | None"

_PORTS = {
    "http": 80,
    "https": 443,
    "socks4": 1080,
    "socks4a": 1080,
    "socks5": 1080,
    "socks5h": 1080,
}

# Whose proxy is taken, by preference (RFC 6455 section 4.1, item 3).
_SETTINGS = {False: ("ws", "socks", "https", "http", "all"), True: ("wss", "socks", "https", "all")}

# Its own fields, and those that would put a body where none belongs.
_OF_CONNECT = (b"host", b"content-length", b"transfer-encoding")

# SOCKS replies that another attempt would get again: not allowed by the rules, no such command
# or kind of address (RFC 1928 section 6); and SOCKS4's two about the user.
_PERMANENT_REPLIES = {"socks5": (2, 7, 8), "socks4": (0x5C, 0x5D)}


class Proxy:
    """A proxy to connect through.

    Args:
        url: of scheme ``http``, ``https`` (TLS to the proxy), ``socks5h``, ``socks5``,
            ``socks4a`` or ``socks4``, with a host; without a scheme it is ``http``. Userinfo
            becomes Basic authentication of HTTP, or the user name and password of SOCKS.
            ``socks5h`` and ``socks4a`` leave name resolution to the proxy.
        ssl: for ``https``, a context of your own instead of one that verifies the proxy.
        headers: of CONNECT; a Proxy-Authorization among them replaces ours.

    Raises:
        ValueError: the URL is none of these, or `ssl` or `headers` do not go with it. The
            message does not contain the URL.

    Attributes:
        scheme: the URL's.
        host: to connect to: a host name in ASCII or an IP address without brackets.
        port: to connect to, by default 80 for ``http``, 443 for ``https`` and 1080 for SOCKS.
    """

    def __init__(
        self,
        url: str,
        *,
        ssl: _ssl.SSLContext | None = None,
        headers: HeadersLike | None = None,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in _PORTS:
            raise ValueError(
                f"expected a proxy's URL of scheme {', '.join(_PORTS)}, got {parts.scheme!r}"
            )
        if not parts.hostname:
            raise ValueError("expected a proxy's URL with a host")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("expected a proxy's URL without path, query and fragment")
        try:
            port = parts.port
        except ValueError:
            raise ValueError("expected a proxy's port from 0 to 65535") from None
        self.scheme: str = parts.scheme
        self.host: str = encode_host(parts.hostname.replace("%25", "%", 1))
        self.port: int = _PORTS[parts.scheme] if port is None else port
        self._ssl = ssl
        self._headers = normalize_headers(headers)
        self._user: bytes | None = None
        self._password = b""
        if parts.username is not None:
            user, _, password = parts.netloc.rpartition("@")[0].partition(":")
            self._user = unquote_to_bytes(user) or None
            self._password = unquote_to_bytes(password)
        if ssl is not None and self.scheme != "https":
            raise ValueError("expected a proxy's URL of scheme https to go with ssl")
        if self._headers and self._socks:
            raise ValueError("expected a proxy's URL of scheme http or https to go with headers")
        for name, _ in self._headers:
            if name.lower() in _OF_CONNECT:
                raise ValueError(f"the header field {name.decode()} belongs to CONNECT")
        if self._socks:
            self._check_socks_user()

    def __repr__(self) -> str:
        # Without the userinfo: it is a secret.
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"<{type(self).__name__} {self.scheme}://{host}:{self.port}>"

    @property
    def _socks(self) -> bool:
        return self.scheme.startswith("socks")

    def _check_socks_user(self) -> None:
        """Check what fits into SOCKS's fields (RFC 1929 section 2), as the library takes it."""
        if self.scheme.startswith("socks5") and (self._user is None) is not (not self._password):
            raise ValueError("expected a user name and a password, or neither, for SOCKS 5")
        for value in (self._user or b"", self._password):
            if len(value) > 255 or not value.isascii() or b"\0" in value:
                raise ValueError(
                    "expected a user name and a password of at most 255 characters of ASCII "
                    "for a SOCKS proxy"
                )

    async def connect(self, host: str, port: int) -> Transport:
        """Return a pipe to a host and port through the proxy.

        Raises:
            OSError, ssl.SSLError: the proxy cannot be reached, as it came.
            ProxyError: the proxy did not make the connection.
            ModuleNotFoundError: SOCKS, and python-socks is not installed.
        """
        # A zone is of this machine only.
        host = host.partition("%")[0]
        if self._socks:
            return await self._connect_socks(host, port)
        pipe = await make_transport(await anyio.connect_tcp(self.host, self.port))
        if self.scheme == "https":
            pipe = await open_tls(
                pipe, self._ssl or default_context(), self.host.partition("%")[0], "the proxy"
            )
        try:
            await self._ask(pipe, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except TransportLost as exc:
            await pipe.abort()
            raise ProxyError(f"the connection to the proxy was lost: {exc}") from exc
        except BaseException:
            await pipe.abort()
            raise
        return pipe

    async def _ask(self, pipe: Transport, authority: str) -> None:
        """Have the proxy connect (RFC 9110 section 9.3.6)."""
        fields: RawHeaders = [(b"Host", authority.encode("ascii")), *self._headers]
        names = [name.lower() for name, _ in fields]
        if (self._user or self._password) and b"proxy-authorization" not in names:
            credentials = base64.b64encode((self._user or b"") + b":" + self._password)
            fields.append((b"Proxy-Authorization", b"Basic " + credentials))
        connection = h11.Connection(h11.CLIENT)
        request = h11.Request(method="CONNECT", target=authority, headers=fields)
        await pipe.send(
            (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        )
        try:
            while not isinstance(event := connection.next_event(), h11.Response):
                if event is h11.NEED_DATA:
                    data = await pipe.receive()
                    if not data:
                        raise ProxyError("the proxy closed the connection without an answer")
                    connection.receive_data(data)
        except h11.RemoteProtocolError as exc:
            raise ProxyError(f"the proxy's answer is malformed: {exc}", permanent=True) from None
        if not 200 <= event.status_code < 300:
            raise ProxyError(
                f"the proxy answered with status {event.status_code}, expected 200",
                event.status_code,
                [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()],
            )
        if connection.trailing_data[0]:
            raise ProxyError("the proxy sent data ahead of the server's", permanent=True)

    async def _connect_socks(self, host: str, port: int) -> Transport:
        try:
            import python_socks
            from python_socks.async_.anyio.v2 import Proxy as SocksProxy
        except ModuleNotFoundError as exc:
            raise ModuleNotFoundError(
                "SOCKS proxies need the package python-socks: install asyncwebsockets[socks]",
                name=exc.name,
            ) from exc
        version = self.scheme[:6]
        proxy = SocksProxy(
            python_socks.ProxyType.SOCKS5 if version == "socks5" else python_socks.ProxyType.SOCKS4,
            self.host,
            self.port,
            (self._user or b"").decode("ascii"),
            self._password.decode("ascii"),
            rdns=self.scheme in ("socks4a", "socks5h"),
        )
        try:
            # The time-out is the caller's.
            stream = await proxy.connect(host, port, timeout=math.inf)
        except python_socks.ProxyConnectionError as exc:
            raise exc.__cause__ or exc from None
        except python_socks.ProxyError as exc:
            # Without a code the proxy has not accepted the user, or speaks no SOCKS; or it has
            # left, which only the error within tells.
            left = type(exc.args[0]).__name__ == "IncompleteReadError"
            permanent = not left and exc.error_code in (None, *_PERMANENT_REPLIES[version])
            raise ProxyError(f"the proxy did not connect: {exc}", permanent=permanent) from None
        except anyio.BrokenResourceError as exc:
            raise ProxyError(f"the connection to the proxy was lost: {exc}") from exc
        return await make_transport(stream.anyio_stream)


def choose_proxy(proxy: ProxyLike, url: WebsocketURL) -> Proxy | None:
    """Return the proxy for a URL, None for none.

    Raises:
        ValueError: the proxy's URL is none.
        TypeError: it is not one of :data:`ProxyLike`.
    """
    if proxy is True:
        return _environment_proxy(url)
    if proxy is None or isinstance(proxy, Proxy):
        return proxy
    if isinstance(proxy, str):
        return Proxy(proxy)
    raise TypeError(f"expected a proxy's URL, a Proxy, True or None, got {type(proxy).__name__}")


def _environment_proxy(url: WebsocketURL) -> Proxy | None:
    """Return what the environment, or the system's settings, say of a URL."""
    proxies = urllib.request.getproxies()
    names = [name for name in _SETTINGS[url.secure] if proxies.get(name)]
    if not names:
        return None
    host = f"[{url.host}]" if ":" in url.host else url.host
    if urllib.request.proxy_bypass(f"{host}:{url.port}") or (
        ":" in url.host and urllib.request.proxy_bypass(url.host)
    ):
        return None
    found = proxies[names[0]]
    if names[0] == "socks" and not found.startswith(("socks4", "socks5")):
        # macOS calls it http, Windows socks.
        found = f"socks5h://{found.rpartition('://')[2]}"
    try:
        return Proxy(found)
    except ValueError as exc:
        raise ValueError(f"the environment's {names[0]}_proxy: {exc}") from None
