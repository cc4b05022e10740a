"""ASGI's WebSocket messages, and the events they stand for.

The section "WebSocket" of the ASGI specification, HTTP & WebSocket message format 2.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncwebsockets.codec import is_close_code
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
    "Accept",
    "Close",
    "Data",
    "DenialBody",
    "DenialStart",
    "Sent",
    "accept_message",
    "clip",
    "close_message",
    "denial_body_message",
    "denial_start_message",
    "disconnect_message",
    "read_received",
    "read_sent",
    "receive_message",
    "send_message",
]

#: What an ASGI application is called with.
Scope: TypeAlias = "MutableMapping[str, Any]"
AsgiMessage: TypeAlias = "MutableMapping[str, Any]"
# Servers and frameworks each have a type of their own for the messages, as asgiref has; those with
# a class for each message are not assignable to mappings, nor the other way round.
Receive: TypeAlias = "Callable[[], Awaitable[Any]]"
Send: TypeAlias = "Callable[[Any], Awaitable[None]]"

RawHeaders: TypeAlias = "Sequence[tuple[bytes, bytes]]"

# A Close has room for that many bytes of a reason (RFC 6455 section 5.5).
_MAX_REASON = 123


@dataclass(slots=True)
class Disconnect:
    """How the server says that a connection has ended.

    Attributes:
        code: the close code; 1005 where the server names none.
        reason: the close reason.
    """

    code: int
    reason: str


@dataclass(slots=True)
class Accept:
    """The application accepts the connection."""

    subprotocol: str | None
    headers: RawHeaders


@dataclass(slots=True)
class Data:
    """The application sends a message."""

    data: str | bytes


@dataclass(slots=True)
class Close:
    """The application closes the connection, or rejects it with 403."""

    code: int
    reason: str


@dataclass(slots=True)
class DenialStart:
    """The application begins an HTTP response in place of a connection."""

    status: int
    headers: RawHeaders


@dataclass(slots=True)
class DenialBody:
    """A piece of that response's body."""

    body: bytes
    more_body: bool


Sent: TypeAlias = "Accept | Data | Close | DenialStart | DenialBody"


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


def read_sent(message: AsgiMessage) -> Sent:
    """Return what a message from an application stands for.

    Raises:
        TypeError: a value is of another type than the specification has.
        ValueError: the type is unknown, or a value is not allowed.
    """
    # Asked first what it nearly always is, for to ask an abstract class takes longer.
    if type(message) is not dict and not isinstance(message, Mapping):
        raise TypeError(f"expected a message as a dict, got {message!r:.100}")
    kind = _get(message, "type", str)
    match kind:
        case "websocket.send":
            return Data(_payload(message))
        case "websocket.accept":
            return Accept(_get(message, "subprotocol", str, None), _headers(message))
        case "websocket.close":
            code = _get(message, "code", int, 1000)
            if not is_close_code(code):
                raise ValueError(f"expected a close code that may be sent, got {code}")
            return Close(code, clip(_get(message, "reason", str, None) or ""))
        case "websocket.http.response.start":
            status = _get(message, "status", int)
            if not 200 <= status <= 599:
                raise ValueError(f"expected a final HTTP status from 200 to 599, got {status}")
            return DenialStart(status, _headers(message))
        case "websocket.http.response.body":
            return DenialBody(
                bytes(_get(message, "body", (bytes, bytearray, memoryview), b"")),
                _get(message, "more_body", bool, False),
            )
    raise ValueError(f"expected a websocket message, got one of type {kind!r}")


def _payload(message: AsgiMessage) -> str | bytes:
    text = _get(message, "text", str, None)
    data = _get(message, "bytes", (bytes, bytearray, memoryview), None)
    if (text is None) == (data is None):
        raise ValueError(
            "expected websocket.send with either text or bytes, got "
            f"{'neither' if text is None else 'both'}"
        )
    return text if text is not None else bytes(data)


def _get(message: AsgiMessage, key: str, types: Any, default: Any = ...) -> Any:
    """Return a value of the right type, the default if there is none or it is None."""
    value = message.get(key)
    if value is None:
        if default is ...:
            raise ValueError(
                f"expected {message.get('type', 'a message')} with {key!r}, got {message!r:.100}"
            )
        return default
    if not isinstance(value, types):
        names = types.__name__ if isinstance(types, type) else "bytes"
        raise TypeError(
            f"expected {key!r} of {message.get('type')} to be {names}, got {value!r:.100}"
        )
    return value


def _headers(message: AsgiMessage) -> RawHeaders:
    headers = []
    given = message.get("headers") or ()
    for pair in given if isinstance(given, Iterable) else (given,):
        match pair:
            case (bytes(name), bytes(value)):
                headers.append((name, value))
            case _:
                raise TypeError(
                    f"expected the headers of {message['type']} to be pairs of bytes, "
                    f"got {pair!r:.100}"
                )
    return headers


def receive_message(data: str | bytes) -> AsgiMessage:
    """Return the message that brings a text or binary message."""
    text = data if isinstance(data, str) else None
    return {
        "type": "websocket.receive",
        "text": text,
        "bytes": data if text is None else None,
    }


def disconnect_message(code: int | None, reason: str | None) -> AsgiMessage:
    """Return the message that says how a connection has ended."""
    return {
        "type": "websocket.disconnect",
        "code": code if code is not None else 1006,
        "reason": reason or "",
    }


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
