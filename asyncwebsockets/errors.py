"""The exceptions of this library.

::

    WebsocketError
    ├── HandshakeError (ConnectionError)
    │   ├── InvalidHandshake
    │   ├── ProxyError
    │   ├── Rejected
    │   │   └── RedirectError
    │   └── HandshakeTimeout (TimeoutError)
    ├── ConnectionClosed
    │   ├── ConnectionClosedOK (anyio.EndOfStream)
    │   ├── ConnectionClosedError (anyio.BrokenResourceError)
    │   └── ConnectionClosedLocally (anyio.ClosedResourceError)
    ├── UnexpectedMessage (TypeError)
    │   └── InvalidJSON (ValueError)
    └── UnsupportedOperation (RuntimeError)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedLocally",
    "ConnectionClosedOK",
    "HandshakeError",
    "HandshakeTimeout",
    "InvalidHandshake",
    "InvalidJSON",
    "ProxyError",
    "RedirectError",
    "Rejected",
    "UnexpectedMessage",
    "UnsupportedOperation",
    "WebsocketError",
]


class WebsocketError(Exception):
    """The root of every exception this library defines."""


class HandshakeError(WebsocketError, ConnectionError):
    """The opening handshake did not lead to a connection (RFC 6455 section 4)."""


class InvalidHandshake(HandshakeError):
    """What the peer sent is not a valid opening handshake.

    Attributes:
        status: the HTTP status that answers it on the server's side (RFC 6455 section 4.2.2).
        headers: header fields that belong to that answer.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers: list[tuple[bytes, bytes]] = list(headers)


class Rejected(HandshakeError):
    """The server answered the handshake with something other than 101.

    Raised at the client that was turned away and at the server whose filter did it.

    Attributes:
        status: the HTTP status.
        headers: the header fields, in order, duplicates kept.
        body: the body, at most ``max_handshake_size`` bytes of it.
    """

    def __init__(
        self, status: int, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> None:
        super().__init__(f"the handshake was answered with status {status}, expected 101")
        self.status = status
        self.headers: list[tuple[bytes, bytes]] = list(headers)
        self.body = body


class RedirectError(Rejected):
    """The server redirected, and that was not followed.

    Attributes:
        why: the reason.
    """

    def __init__(
        self,
        why: str,
        status: int,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
    ) -> None:
        super().__init__(status, headers, body)
        self.why = why

    def __str__(self) -> str:
        return f"a redirect with status {self.status} was not followed: {self.why}"


class ProxyError(HandshakeError):
    """The proxy did not connect to the server.

    Attributes:
        status: of an HTTP proxy's answer, None if there was none.
        headers: the header fields of that answer.
        permanent: whether another attempt would come to the same, as far as the proxy says.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        permanent: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers: list[tuple[bytes, bytes]] = list(headers)
        self.permanent: bool = permanent or (status is not None and not is_passing(status))


def is_passing(status: int) -> bool:
    """Whether an HTTP status speaks of the moment only (RFC 9110, RFC 8470, RFC 6585)."""
    return status >= 500 or status in (408, 425, 429)


class HandshakeTimeout(HandshakeError, TimeoutError):
    """The opening handshake was not complete within ``open_timeout``."""


class ConnectionClosed(WebsocketError):
    """The connection has ended.

    Attributes:
        code: the close code (RFC 6455 section 7.1.5): the one received, 1005 if the peer's
            Close had none, 1006 if there was no Close, or the code this side failed it with.
        reason: the close reason, or what went wrong.
        source: what the connection was carried by; it tells one connection's end from another's.
    """

    def __init__(self, code: int, reason: str = "", source: object = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.source = source

    def __str__(self) -> str:
        # The peer's words are logged with it: no line of theirs is to pass for one of the log's.
        reason = self.reason if self.reason.isprintable() else repr(self.reason)
        return f"{self.code} {reason}".rstrip()


class ConnectionClosedOK(ConnectionClosed, EndOfStream):
    """A closing handshake took place; there is nothing more to receive."""


class ConnectionClosedError(ConnectionClosed, BrokenResourceError):
    """The connection was lost or failed, or it is gone and something was to be sent on it."""


class ConnectionClosedLocally(ConnectionClosed, ClosedResourceError):
    """The connection was used after this side had closed it."""


class UnexpectedMessage(WebsocketError, TypeError):
    """A message of the other kind came than the one asked for; it has been consumed.

    The peer is told so where the exception leaves the connection's block or handler.

    Attributes:
        data: the message.
        code: the close code for it, 1003 (RFC 6455 section 7.4.1).
        reason: the close reason for it.
        source: what the connection was carried by, as for :class:`ConnectionClosed`.
    """

    code: int = 1003

    def __init__(self, expected: str, data: str | bytes, source: object = None) -> None:
        came = "text" if isinstance(data, str) else "binary"
        self.reason: str = f"expected a {expected} message, a {came} message came"
        super().__init__(self.reason)
        self.data = data
        self.source = source


class InvalidJSON(UnexpectedMessage, ValueError):
    """A message came that is not JSON; it has been consumed.

    The parser's own exception is the ``__cause__``.

    Attributes:
        code: the close code for it, 1007 (RFC 6455 section 7.4.1).
    """

    code = 1007

    def __init__(self, data: str | bytes, source: object = None) -> None:
        super().__init__("JSON", data, source)
        self.reason = "expected JSON"

    def __str__(self) -> str:
        return f"expected JSON: {self.__cause__}" if self.__cause__ else "expected JSON"


class UnsupportedOperation(WebsocketError, RuntimeError):
    """The connection's carrier has no such operation (a ping over ASGI, for example)."""
