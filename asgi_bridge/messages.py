"""ASGI's WebSocket messages, and the events they stand for.

The section "WebSocket" of the ASGI specification, HTTP & WebSocket message format 2.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncwebsockets.events import BytesMessage, TextMessage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from asyncwebsockets.events import AcceptConnection

__all__ = [
    "AsgiMessage",
    "Disconnect",
    "Receive",
    "Scope",
    "Send",
    "accept_message",
    "clip",
    "close_message",
    "denial_body_message",
    "denial_start_message",
    "read_received",
    "send_message",
]

#: What an ASGI application is called with.
Scope: TypeAlias = "MutableMapping[str, Any]"
AsgiMessage: TypeAlias = "MutableMapping[str, Any]"
Receive: TypeAlias = "Callable[[], Awaitable[AsgiMessage]]"
Send: TypeAlias = "Callable[[AsgiMessage], Awaitable[None]]"

RawHeaders: TypeAlias = "Sequence[tuple[bytes, bytes]]"

# A Close has room for that many bytes of a reason (RFC 6455 section 5.5).
_MAX_REASON = 123


@dataclass(frozen=True)
class Disconnect:
    """How the server says that a connection has ended.

    Attributes:
        code: the close code; 1005 where the server names none.
        reason: the close reason.
    """

    code: int
    reason: str


def read_received(message: AsgiMessage) -> TextMessage | BytesMessage | Disconnect:
    """Return what a message from the server stands for, once the connection is open.

    Raises:
        ValueError: it is none that can come then.
    """
    match message["type"]:
        case "websocket.receive":
            # Either key may be there or not; exactly one has a value.
            text = message.get("text")
            if text is not None:
                return TextMessage(text)
            data = message.get("bytes")
            if data is not None:
                return BytesMessage(bytes(data))
            raise ValueError("expected websocket.receive with text or bytes, got neither")
        case "websocket.disconnect":
            return Disconnect(message.get("code") or 1005, message.get("reason") or "")
        case other:
            raise ValueError(f"expected websocket.receive or websocket.disconnect, got {other!r}")


def send_message(data: str | bytes) -> AsgiMessage:
    """Return the message that sends a text or binary message."""
    if isinstance(data, str):
        return {"type": "websocket.send", "text": data}
    return {"type": "websocket.send", "bytes": data}


def accept_message(accept: AcceptConnection, headers: RawHeaders) -> AsgiMessage:
    """Return the message that accepts a connection."""
    return {
        "type": "websocket.accept",
        "subprotocol": accept.subprotocol,
        "headers": _lowered(headers),
    }


def close_message(code: int = 1000, reason: str = "") -> AsgiMessage:
    """Return the message that closes a connection; before accept it is HTTP's 403.

    A reason that a Close has no room for is cut at a character's end.
    """
    return {"type": "websocket.close", "code": code, "reason": clip(reason)}


def denial_start_message(status: int, headers: RawHeaders) -> AsgiMessage:
    """Return the message that begins an HTTP response in place of a connection."""
    return {
        "type": "websocket.http.response.start",
        "status": status,
        "headers": _lowered(headers),
    }


def denial_body_message(body: bytes, more_body: bool) -> AsgiMessage:
    """Return the message with a piece of such a response's body."""
    return {"type": "websocket.http.response.body", "body": body, "more_body": more_body}


def clip(reason: str) -> str:
    """Cut a reason to what a Close has room for, at a character's end."""
    return reason.encode()[:_MAX_REASON].decode(errors="ignore")


def _lowered(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers]
