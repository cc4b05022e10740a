"""Cookies of the handshake (RFC 6265), in a jar of the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPMessage
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.request import Request

from ._grammar import is_token

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._url import WebsocketURL

__all__ = ["CookiesLike", "cookie_header", "keep_cookies", "make_jar"]

#: What `open_websocket` takes as cookies: a jar, or names and values.
CookiesLike: TypeAlias = CookieJar | Mapping[str, str]


def make_jar(cookies: CookiesLike | None, url: WebsocketURL) -> CookieJar | None:
    """Return the jar for a connection, None for none.

    Names and values become cookies of the URL's host, for all its paths.

    Raises:
        ValueError: a name or value has characters that no cookie has.
        TypeError: the cookies are neither a jar nor a mapping of ``str``.
    """
    if cookies is None or isinstance(cookies, CookieJar):
        return cookies
    if not isinstance(cookies, Mapping):
        raise TypeError(
            f"expected a CookieJar or a mapping as cookies, got {type(cookies).__name__}"
        )
    jar = CookieJar()
    keep_cookies(jar, url, [(b"Set-Cookie", _set_cookie(*cookie)) for cookie in cookies.items()])
    return jar


def _set_cookie(name: object, value: object) -> bytes:
    if not (isinstance(name, str) and isinstance(value, str)):
        raise TypeError(f"expected names and values of str as cookies, got {name!r}")
    if not is_token(name):
        raise ValueError(f"expected the name of a cookie, got {name!r}")
    if not value.isascii() or any(char <= " " or char in ',;\\"\x7f' for char in value.strip('"')):
        # The value is left out: it may be a secret.
        raise ValueError(f"the value of cookie {name!r} has characters that no cookie has")
    return f"{name}={value}; Path=/".encode("ascii")


def cookie_header(jar: CookieJar, url: WebsocketURL) -> bytes | None:
    """Return the value of the Cookie header field that goes to a URL, None for none."""
    request = Request(url.http)
    jar.add_cookie_header(request)
    value = request.get_header("Cookie")
    return None if value is None else value.encode("latin-1")


def keep_cookies(jar: CookieJar, url: WebsocketURL, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Put the cookies that came from a URL into the jar, as far as its policy lets it."""
    response: Any = _Response([value for name, value in headers if name.lower() == b"set-cookie"])
    jar.extract_cookies(response, Request(url.http))


class _Response:
    """What a jar wants to see of a response."""

    def __init__(self, cookies: Sequence[bytes]) -> None:
        self._message = HTTPMessage()
        for cookie in cookies:
            self._message["Set-Cookie"] = cookie.decode("latin-1")

    def info(self) -> HTTPMessage:
        return self._message
