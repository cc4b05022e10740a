"""What every peer can be asked to do, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import anyio

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Sequence

    from asyncwebsockets import Deflate, Reject

Data = str | bytes

#: A header field that tests send, in requests and responses.
HEADER = "X-Peers"


@dataclass(frozen=True)
class Closed:
    """How a peer says that a connection has ended; None is what it does not say."""

    code: int | None
    reason: str | None


class Refused(Exception):
    """A peer's client was turned away; None is what it does not say about that."""

    def __init__(
        self,
        status: int | None,
        headers: Sequence[tuple[str, str]] | None = None,
        body: bytes | None = None,
        code: int | None = None,
    ) -> None:
        super().__init__(status, headers, body, code)
        self.status = status
        self.headers = None if headers is None else [(n.lower(), v) for n, v in headers]
        self.body = body
        self.code = code


@dataclass(frozen=True)
class Tls:
    """A context for each side, and the same as PEM for peers that are not Python."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    certificate: str
    key: str
    authority: str


@dataclass(frozen=True)
class Options:
    """What a peer is to be set to."""

    #: A client offers them, a server chooses from them.
    subprotocols: Sequence[str] = ()
    headers: Sequence[tuple[str, str]] = ()
    compression: Deflate | None = None
    max_size: int = 64 * 2**20
    tls: Tls | None = None
    #: A server turns its clients away with this; the body is bytes.
    reject: Reject | None = None


class End(ABC):
    """A peer's end of an open connection, used in the peer's own event loop."""

    #: The payloads of the pings that came, where the peer shows them.
    pings: list[bytes]

    def __init__(
        self, subprotocol: str | None, header: str | None = None, target: str | None = None
    ) -> None:
        #: The subprotocol agreed on.
        self.subprotocol = subprotocol or None
        #: What came in the header field `HEADER`, if the peer shows header fields.
        self.header = header
        #: The request's target, at a server's end.
        self.target = target
        self.pings = []

    @abstractmethod
    async def send(self, data: Data) -> None:
        """Send a message."""

    async def send_fragments(self, pieces: Sequence[Data]) -> None:
        """Send a message with a frame for each piece, perhaps an empty one at the end."""
        raise NotImplementedError

    @abstractmethod
    async def receive(self) -> list[Data]:
        """Return the next message, in its fragments where the peer shows them."""

    async def ping(self, payload: bytes) -> None:
        """Send a ping and wait for its pong."""
        raise NotImplementedError

    @abstractmethod
    async def close(self, code: int | None, reason: str) -> None:
        """Do the closing handshake; without a code, Close has no payload."""

    @abstractmethod
    async def closed(self) -> Closed:
        """Wait for the connection's end; messages that still come are dropped."""

    async def drop(self) -> None:
        """Cut the TCP connection."""
        raise NotImplementedError


class Listening:
    """A peer's server, used in the peer's own event loop."""

    def __init__(self, port: int, tls: Tls | None) -> None:
        self.url = f"wss://localhost:{port}" if tls else f"ws://127.0.0.1:{port}"
        self._arrived = anyio.Event()
        self._end: End | None = None
        #: The server is about to be closed.
        self.over = anyio.Event()

    async def accept(self) -> End:
        """Wait for the one client."""
        await self._arrived.wait()
        assert self._end is not None
        return self._end

    async def hold(self, end: End) -> None:
        """Hand a connection over, and keep it until the end."""
        self._end = end
        self._arrived.set()
        await self.over.wait()


class Peer(ABC):
    """A WebSocket implementation that is not ours, and what it can do.

    Tests are not generated for what a peer cannot do; each says why it cannot.
    """

    name: ClassVar[str]
    #: The event loop it needs.
    backend: ClassVar[str] = "asyncio"
    roles: ClassVar[Sequence[str]] = ("client", "server")

    sends_fragments: ClassVar[bool] = True
    shows_fragments: ClassVar[bool] = False
    sends_pings: ClassVar[bool] = True
    shows_pings: ClassVar[bool] = False
    compresses: ClassVar[bool] = False
    limits_size: ClassVar[bool] = True
    closes_without_code: ClassVar[bool] = False
    can_drop: ClassVar[bool] = True
    shows_headers: ClassVar[bool] = True
    shows_refusal: ClassVar[bool] = True
    shows_refusal_body: ClassVar[bool] = True
    #: If not, a body that came in chunks (RFC 9112 section 7.1) is shown as it came.
    undoes_chunks: ClassVar[bool] = True
    trusts_authority: ClassVar[bool] = True
    #: A client that offered subprotocols fails if the server chooses none of them.
    wants_subprotocol: ClassVar[bool] = False
    #: A server that knows subprotocols turns a client away that offers none of them.
    wants_common_subprotocol: ClassVar[bool] = False

    @classmethod
    def missing(cls) -> str | None:
        """Return what must be installed before it can be used, None if nothing."""
        return None

    def echo(self, code: int, reason: str) -> Closed:
        """Return what it answers a Close with (RFC 6455 section 5.5.1: typically the same)."""
        return Closed(code, reason)

    def answered(self, role: str, code: int, reason: str) -> Closed:
        """Return what it shows of the answer to its own Close with this code and reason."""
        return Closed(code, reason)

    def lost(self, role: str) -> Closed:
        """Return what it shows of a connection that ended without a Close."""
        return Closed(1006, "")

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Have what it needs for all its connections."""
        yield

    @abstractmethod
    def connect(self, url: str, options: Options) -> AbstractAsyncContextManager[End]:
        """Connect as a client.

        Raises:
            Refused: the server has turned it away.
        """

    def serve(self, options: Options) -> AbstractAsyncContextManager[Listening]:
        """Listen, for one client."""
        raise NotImplementedError
