"""WebSocket URLs (RFC 6455 section 3)."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes, urlsplit

import idna

__all__ = ["WebsocketURL", "encode_host", "format_host", "parse_url"]

_PORTS = {"ws": 80, "wss": 443}

# What may stand in a path or query as it is (RFC 3986 section 3.3), "%" included so that
# what is escaped already stays so.
_SAFE = "/?:@!$&'()*+,;=-._~%"


@dataclass(frozen=True)
class WebsocketURL:
    """The parts of a WebSocket URL.

    Attributes:
        secure: whether it is ``wss``.
        host: to connect to: a host name in ASCII or an IP address without brackets.
        port: to connect to.
        target: the request's path and query.
        authorization: the value of an Authorization header field for the URL's userinfo, or
            None.
    """

    secure: bool
    host: str
    port: int
    target: str
    authorization: str | None = field(repr=False)

    @property
    def host_header(self) -> str:
        """The Host header field, a default port left out (RFC 9110 section 7.2)."""
        return format_host(self.host, self.port, secure=self.secure)

    @property
    def origin(self) -> tuple[bool, str, int]:
        """What two URLs of one server have in common (RFC 6454 section 4)."""
        return self.secure, self.host, self.port

    @property
    def http(self) -> str:
        """The same of scheme ``http`` or ``https``, without userinfo."""
        return f"{'https' if self.secure else 'http'}://{self.host_header}{self.target}"


def format_host(host: str, port: int | None, *, secure: bool) -> str:
    """Return a Host header field, a default port left out and IPv6 literals in brackets."""
    if ":" in host:
        # A zone means something on this machine only (RFC 6874 section 4).
        host = f"[{host.partition('%')[0]}]"
    return host if port in (None, _PORTS["wss" if secure else "ws"]) else f"{host}:{port}"


def encode_host(host: str) -> str:
    """Return a host name in ASCII (IDNA 2008, UTS 46).

    Raises:
        ValueError: it is not a host name.
    """
    if host.isascii():
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as exc:
        raise ValueError(f"expected a host name, got {host!r}: {exc}") from None


def parse_url(url: str) -> WebsocketURL:
    """Parse a WebSocket URL.

    Raises:
        ValueError: the URL is not one of scheme ``ws`` or ``wss`` with a host, or has a
            fragment (RFC 6455 section 3 forbids it).
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError(f"expected a URL of scheme ws or wss, got {parts.scheme or 'none'!r}")
    if "#" in url:
        raise ValueError("expected a URL without a fragment")
    if any(ord(char) <= 0x20 or ord(char) == 0x7F for char in url):
        raise ValueError("expected a URL without spaces and control characters")
    host = parts.hostname
    if not host:
        raise ValueError("expected a URL with a host")
    if "[" in parts.netloc:
        host = host.replace("%25", "%", 1)
        try:
            ipaddress.IPv6Address(host)
        except ValueError as exc:
            raise ValueError(f"expected an IPv6 address in the brackets: {exc}") from None
    else:
        host = encode_host(host)
    try:
        port = parts.port
    except ValueError as exc:
        raise ValueError(f"expected a port from 0 to 65535: {exc}") from None
    secure = parts.scheme == "wss"
    target = quote(parts.path or "/", safe=_SAFE)
    if parts.query:
        target += f"?{quote(parts.query, safe=_SAFE)}"
    authorization = None
    if parts.username is not None:
        userinfo = parts.netloc.rpartition("@")[0]
        user, _, password = userinfo.partition(":")
        credentials = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
        authorization = f"Basic {base64.b64encode(credentials).decode('ascii')}"
    return WebsocketURL(
        secure, host, port if port is not None else _PORTS[parts.scheme], target, authorization
    )
