"""Origin checks for filters, against cross-site WebSocket hijacking (RFC 6455 section 10.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .events import Request

__all__ = ["check_origin", "origin_filter"]

_PORTS = {"http": 80, "https": 443}


def _parse(origin: str) -> tuple[str, str, int] | None:
    """Return an origin's scheme, host and port (RFC 6454 section 4), None if it is opaque."""
    try:
        url = urlsplit(origin)
        port = url.port or _PORTS[url.scheme]
    except (ValueError, KeyError):
        return None
    if not url.hostname or url.path or url.query or url.fragment or url.username is not None:
        return None
    return url.scheme, url.hostname, port


def check_origin(
    request: Request,
    origins: Iterable[str] = (),
    *,
    same_origin: bool = True,
    missing: bool = True,
) -> bool:
    """Whether a request comes from a page that may connect.

    Browsers send Origin with every WebSocket handshake and send the user's cookies with it,
    whatever page opens the connection: a server that trusts cookies has to look at it.

    Args:
        request: the request a filter was given.
        origins: the origins allowed, such as "https://example.com"; the port may be left out
            where it is the scheme's own.
        same_origin: also allow a page from the host that the request is for. Behind a proxy
            that ends TLS or changes Host, name the origins instead.
        missing: allow a request without Origin, as clients other than browsers send it.

    Returns:
        Whether the origin is allowed. An opaque origin ("null") never is.

    Raises:
        ValueError: one of `origins` is not an origin.
    """
    allowed = set()
    for origin in origins:
        parsed = _parse(origin)
        if parsed is None:
            raise ValueError(f'expected an origin such as "https://example.com", got {origin!r}')
        allowed.add(parsed)
    values = [value for name, value in request.headers if name.lower() == b"origin"]
    if not values:
        return missing
    if len(values) > 1:
        return False
    came = _parse(values[0].decode("latin-1"))
    if came is None:
        return False
    if same_origin:
        own = _parse(f"{'https' if request.secure else 'http'}://{request.host}")
        if own is not None:
            allowed.add(own)
    return came in allowed


def origin_filter(
    *origins: str, same_origin: bool = True, missing: bool = True
) -> Callable[[Request], Awaitable[bool]]:
    """Return a filter that accepts what :func:`check_origin` allows and answers 403 otherwise.

    Raises:
        ValueError: one of `origins` is not an origin.
    """
    for origin in origins:
        if _parse(origin) is None:
            raise ValueError(f'expected an origin such as "https://example.com", got {origin!r}')

    async def filter(request: Request) -> bool:
        return check_origin(request, origins, same_origin=same_origin, missing=missing)

    return filter
