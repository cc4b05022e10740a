"""The events of a connection: wsproto's, and what this library adds to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    RejectConnection,
    TextMessage,
)
from wsproto.events import Request as _Request

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AcceptConnection",
    "Address",
    "BytesMessage",
    "CloseConnection",
    "Event",
    "Message",
    "Ping",
    "Pong",
    "Reject",
    "RejectConnection",
    "Request",
    "Response",
    "TextMessage",
]

#: ``(host, port)``, the path of a Unix socket, or None where there is no address.
Address: TypeAlias = tuple[str, int] | str | None

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]


def find_header(headers: Sequence[tuple[bytes, bytes]], name: str) -> str | None:
    """Return the values of a header field joined by ", ", or None if there is none."""
    key = name.lower().encode("ascii")
    values = [value.decode("latin-1") for field_name, value in headers if field_name.lower() == key]
    return ", ".join(values) if values else None


@dataclass(frozen=True, repr=False)
class Request(_Request):
    """An opening handshake's request (RFC 6455 section 4.1).

    To wsproto's fields ``host``, ``target``, ``extensions``, ``extra_headers`` and
    ``subprotocols`` it adds:

    Attributes:
        method: the HTTP method.
        headers: every header field as it came, order and duplicates kept.
        local_address: this side's address.
        remote_address: the peer's address.
        secure: whether the connection is encrypted (``wss``).
        http_version: "1.1", or what an ASGI server reports.
    """

    method: str = "GET"
    headers: RawHeaders = field(default_factory=list)
    local_address: Address = None
    remote_address: Address = None
    secure: bool = False
    http_version: str = "1.1"

    def __repr__(self) -> str:
        # Queries and header fields carry secrets, and this is what is logged.
        return f"<{type(self).__name__} {self.method} {self.path}>"

    @property
    def path(self) -> str:
        """The target without its query, still percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The query of the target, still percent-encoded, "" if there is none."""
        return self.target.partition("?")[2]

    @property
    def origin(self) -> str | None:
        """The Origin header field (RFC 6454 section 7), None if there is none."""
        return self.header("Origin")

    def header(self, name: str) -> str | None:
        """Return the values of a header field joined by ", ", or None if there is none."""
        return find_header(self.headers, name)


@dataclass(frozen=True, repr=False)
class Response:
    """The server's answer to the opening handshake.

    Attributes:
        status: the HTTP status, 101 on an open connection.
        headers: the header fields as they came, order and duplicates kept.
    """

    status: int
    headers: RawHeaders = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.status}>"

    def header(self, name: str) -> str | None:
        """Return the values of a header field joined by ", ", or None if there is none."""
        return find_header(self.headers, name)


@dataclass(frozen=True)
class Reject:
    """A filter's or ``on_http``'s answer: an HTTP response in place of a connection.

    Attributes:
        status: the HTTP status, 200 to 599.
        headers: header fields, ``str`` or ``bytes``. Content-Length is added for a body of
            bytes; a body of unknown length is sent chunked.
        body: bytes, or an async iterable of bytes.

    Raises:
        ValueError: the status is none that can end a request, or one that has no body.
        TypeError: the body is neither bytes nor an async iterable.
    """

    status: int = 403
    headers: Sequence[tuple[str | bytes, str | bytes]] = ()
    body: bytes | AsyncIterable[bytes] = b""

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise ValueError(f"expected a final HTTP status from 200 to 599, got {self.status}")
        if not isinstance(self.body, (bytes, AsyncIterable)):
            raise TypeError(f"expected a body of bytes or an async iterable, got {self.body!r}")
        if self.status in (204, 304) and self.body != b"":
            raise ValueError(f"expected no body with status {self.status}")

    @asynccontextmanager
    async def pieces(self) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """Iterate over the body: ``async with reject.pieces() as pieces: async for ...``.

        A generator that makes the pieces is closed when the block is left.
        """
        body = _one(self.body) if isinstance(self.body, bytes) else aiter(self.body)
        try:
            yield body
        finally:
            # A client that leaves must not leave it to the garbage collector.
            if isinstance(body, AsyncGenerator):
                await body.aclose()


async def _one(body: bytes) -> AsyncGenerator[bytes, None]:
    if body:
        yield body
