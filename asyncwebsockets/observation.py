"""What can be known of connections from outside: counts, records of their ends, observers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from .events import Address, Request, Response

__all__ = [
    "Connection",
    "ConnectionRecord",
    "Observation",
    "Observer",
    "ServerStatistics",
    "Statistics",
]


@dataclass(frozen=True)
class Statistics:
    """What has come and gone on a connection so far.

    Bytes are those of frames with their headers, compressed but not encrypted, without the opening
    handshake. What is sent counts when it is handed to the socket, or to what waits for it.

    Attributes:
        bytes_received: bytes of frames.
        bytes_sent: bytes of frames.
        messages_received: messages that have come whole, whether or not somebody has received them.
        messages_sent: messages that have been sent with their end.
        pings_received: pings of the peer.
        pings_sent: pings of this side, keepalive's included.
        opened_at: when the opening handshake was done, in seconds since the epoch.
        duration: the seconds since then, or until the connection's end.
    """

    bytes_received: int
    bytes_sent: int
    messages_received: int
    messages_sent: int
    pings_received: int
    pings_sent: int
    opened_at: float
    duration: float


@dataclass(frozen=True)
class ServerStatistics:
    """What a server has done since it began to listen.

    Attributes:
        accepted: connections accepted, each of which is counted below as well.
        refused: those beyond ``max_connections`` or ``max_handshakes``: 503.
        answered: plain HTTP that was answered by ``on_http``.
        rejected: handshakes that the filter has rejected, or that came when the server closed.
        failed: handshakes that came to nothing otherwise.
        opened: handshakes that have led to a connection.
        handshaking: handshakes under way now.
        open: connections open now.
        bytes_received: as in :class:`Statistics`, of all connections; so are those below.
        bytes_sent: bytes of frames.
        messages_received: messages that have come whole.
        messages_sent: messages that have been sent with their end.
        pings_received: pings of the peers.
        pings_sent: pings of this side.
    """

    accepted: int
    refused: int
    answered: int
    rejected: int
    failed: int
    opened: int
    handshaking: int
    open: int
    bytes_received: int
    bytes_sent: int
    messages_received: int
    messages_sent: int
    pings_received: int
    pings_sent: int


@dataclass(frozen=True)
class ConnectionRecord:
    """How a connection went and ended. What came from the peer is as it came.

    Attributes:
        role: this side's.
        path: the request's target without its query.
        subprotocol: the one agreed on, None for none.
        local_address: this side's address.
        remote_address: the peer's address.
        close_code: as ``Websocket.close_code``.
        close_reason: as ``Websocket.close_reason``.
        closed_by: who has ended it, "local" or "remote"; None if it was lost.
        clean: whether a closing handshake has taken place (RFC 6455 section 7.1.4).
        statistics: what has come and gone.
    """

    role: Literal["client", "server"]
    path: str
    subprotocol: str | None
    local_address: Address
    remote_address: Address
    close_code: int
    close_reason: str
    closed_by: Literal["local", "remote"] | None
    clean: bool
    statistics: Statistics


class Connection(Protocol):
    """A connection as an observer sees it: a :class:`Websocket`."""

    @property
    def request(self) -> Request:
        """The opening handshake's request."""

    @property
    def response(self) -> Response:
        """The server's answer to it."""

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on, None for none."""

    @property
    def local_address(self) -> Address:
        """This side's address."""

    @property
    def remote_address(self) -> Address:
        """The peer's address."""

    @property
    def close_code(self) -> int | None:
        """The close code, None while it is open."""

    @property
    def close_reason(self) -> str | None:
        """The close reason, None while it is open."""

    @property
    def statistics(self) -> Statistics:
        """What has come and gone."""


class Observation:
    """What is told of one opening handshake and of the connection that it leads to.

    Derive from it, and override what you want to know. The methods are called on the event loop, so
    they must not block. What they raise is logged, and harms no connection.

    Attributes:
        headers: on a client's side, header fields to send with the request; those that it has
            already are left out.
    """

    headers: Sequence[tuple[str, str]] = ()

    def activate(self) -> AbstractContextManager[object]:
        """Return a context manager to be entered around filter and handler, each in its task."""
        return nullcontext()

    def failed(self, error: BaseException, status: int | None) -> None:
        """Take note that the handshake came to nothing: the last call.

        Args:
            error: why; a cancellation as well.
            status: that of the response, None if there was none.
        """

    def opened(self, connection: Connection) -> None:
        """Take note that the handshake has led to a connection."""

    def closed(self, record: ConnectionRecord) -> None:
        """Take note that the connection has ended: the last call."""


class Observer(Protocol):
    """What ``Settings.observer`` is: a function that is called with each handshake."""

    def __call__(
        self, role: Literal["client", "server"], request: Request, /
    ) -> Observation | None:
        """Return what is to be told of this handshake and its connection, None for nothing.

        Args:
            role: this side's.
            request: the handshake's. A client's is not sent yet, and has no addresses.
        """
