"""Where a redirect leads, and what goes along (RFC 9110 section 15.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from ._url import parse_url
from .errors import RedirectError

if TYPE_CHECKING:
    from ._url import WebsocketURL
    from .errors import Rejected
    from .events import RawHeaders

__all__ = ["is_redirect", "redirect"]

# Each keeps the method, which is GET.
_STATUSES = (301, 302, 303, 307, 308)

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

# What is for one server only: credentials, and the name it goes by.
_OF_ORIGIN = (b"authorization", b"cookie", b"host", b"proxy-authorization")

# What may stand in a URL as it is (RFC 3986 section 2); the rest is escaped as the bytes it is.
_SAFE = "/?:@!$&'()*+,;=-._~%#[]"


def is_redirect(rejected: Rejected) -> bool:
    """Whether a server's answer says that the connection is to be had elsewhere."""
    return rejected.status in _STATUSES and len(_locations(rejected)) > 0


def redirect(
    rejected: Rejected, url: WebsocketURL, headers: RawHeaders, *, same_origin: bool = False
) -> tuple[WebsocketURL, RawHeaders]:
    """Return where to connect next, and with which header fields.

    Args:
        rejected: the answer.
        url: where it came from.
        headers: the user's header fields.
        same_origin: whether it may not lead to another origin.

    Raises:
        RedirectError: it is not to be followed.
    """

    def refuse(why: str) -> RedirectError:
        return RedirectError(why, rejected.status, rejected.headers, rejected.body)

    locations = _locations(rejected)
    if len(locations) > 1:
        raise refuse(f"expected one Location header field, got {len(locations)}")
    try:
        parts = urlsplit(urljoin(url.http, quote(locations[0], safe=_SAFE)))
        scheme = _SCHEMES.get(parts.scheme)
        if scheme is None:
            raise refuse(f"expected a Location of http, https, ws or wss, got {parts.scheme!r}")
        following = parse_url(parts._replace(scheme=scheme, fragment="").geturl())
        # As name resolution will; an empty label is an error there.
        following.host.encode("idna")
    except ValueError as exc:
        raise refuse(f"the Location is no URL: {exc}") from None
    if following.authorization is not None:
        # RFC 9110 section 4.2.4: it is there to mislead.
        raise refuse("the Location has userinfo")
    if url.secure and not following.secure:
        raise refuse("it leads from wss to ws")
    if following.origin == url.origin:
        return replace(following, authorization=url.authorization), headers
    if same_origin:
        raise refuse("it leads to another origin, which a Unix socket cannot")
    return following, [(name, value) for name, value in headers if name.lower() not in _OF_ORIGIN]


def _locations(rejected: Rejected) -> list[bytes]:
    return [value for name, value in rejected.headers if name.lower() == b"location"]
