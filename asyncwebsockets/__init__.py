"""WebSockets for clients and servers, on anyio and wsproto.

Open a connection with :func:`open_websocket`, serve them with :func:`serve`; both work on
asyncio, uvloop and trio alike. `create_websocket`, `open_websocket_client`,
`open_websocket_server` and their kin work on streams you have already.
"""

from __future__ import annotations

from wsproto.connection import ConnectionState

from ._broadcast import broadcast
from ._proxy import Proxy
from ._reconnect import Reconnecting, reconnect
from .channel import Channel
from .client import (
    create_websocket,
    create_websocket_client,
    open_websocket,
    open_websocket_client,
)
from .errors import (
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedLocally,
    ConnectionClosedOK,
    HandshakeError,
    HandshakeTimeout,
    InvalidHandshake,
    InvalidJSON,
    ProxyError,
    RedirectError,
    Rejected,
    UnexpectedMessage,
    UnsupportedOperation,
    WebsocketError,
)
from .events import Reject, Request, Response
from .observation import ConnectionRecord, Observation, Observer, ServerStatistics, Statistics
from .origin import check_origin, origin_filter
from .server import Server, create_websocket_server, open_websocket_server, serve
from .settings import Deflate, Settings
from .transport import Transport
from .websocket import Websocket

__all__ = [
    "Channel",
    "ConnectionClosed",
    "ConnectionClosedError",
    "ConnectionClosedLocally",
    "ConnectionClosedOK",
    "ConnectionRecord",
    "ConnectionState",
    "Deflate",
    "HandshakeError",
    "HandshakeTimeout",
    "InvalidHandshake",
    "InvalidJSON",
    "Observation",
    "Observer",
    "Proxy",
    "ProxyError",
    "Reconnecting",
    "RedirectError",
    "Reject",
    "Rejected",
    "Request",
    "Response",
    "Server",
    "ServerStatistics",
    "Settings",
    "Statistics",
    "Transport",
    "UnexpectedMessage",
    "UnsupportedOperation",
    "Websocket",
    "WebsocketError",
    "broadcast",
    "check_origin",
    "create_websocket",
    "create_websocket_client",
    "create_websocket_server",
    "open_websocket",
    "open_websocket_client",
    "open_websocket_server",
    "origin_filter",
    "reconnect",
    "serve",
]
