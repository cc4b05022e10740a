"""What an application may send when: the states of one connection, as it sees it.

The sections "Send" of WebSocket and of the "WebSocket Denial Response" extension, ASGI
specification.
"""

from __future__ import annotations

from enum import Enum

from .messages import Accept, Close, Data, DenialBody, DenialStart, Sent

__all__ = ["Phase", "advance"]


class Phase(Enum):
    """Where a connection stands.

    Attributes:
        CONNECTING: nothing was sent yet.
        DENYING: a denial response has begun.
        OPEN: the connection was accepted.
        CLOSED: the application has closed or rejected it; nothing may follow.
    """

    CONNECTING = "is not accepted yet"
    DENYING = "is being denied"
    OPEN = "is open"
    CLOSED = "is closed"


_EXPECTED = {
    Phase.CONNECTING: "websocket.accept, websocket.close or websocket.http.response.start",
    Phase.DENYING: "websocket.http.response.body",
    Phase.OPEN: "websocket.send or websocket.close",
}

_NAMES = {
    Accept: "websocket.accept",
    Data: "websocket.send",
    Close: "websocket.close",
    DenialStart: "websocket.http.response.start",
    DenialBody: "websocket.http.response.body",
}


def advance(phase: Phase, sent: Sent) -> Phase:
    """Return the phase that a message leads to, from one in which something may follow.

    Raises:
        RuntimeError: the message cannot be sent in this phase.
    """
    match phase, sent:
        case Phase.CONNECTING, Accept():
            return Phase.OPEN
        case Phase.CONNECTING, DenialStart():
            return Phase.DENYING
        case Phase.CONNECTING, Close():
            return Phase.CLOSED
        case Phase.DENYING, DenialBody(more_body=more_body):
            return Phase.DENYING if more_body else Phase.CLOSED
        case Phase.OPEN, Data():
            return Phase.OPEN
        case Phase.OPEN, Close():
            return Phase.CLOSED
    raise RuntimeError(
        f"expected {_EXPECTED[phase]} from an application whose connection {phase.value}, "
        f"got {_NAMES[type(sent)]}"
    )
