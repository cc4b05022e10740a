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


# From where a message leads where; a body to the end only with its last piece.
_STEPS: dict[type[Sent], list[tuple[Phase, Phase]]] = {
    Data: [(Phase.OPEN, Phase.OPEN)],
    Accept: [(Phase.CONNECTING, Phase.OPEN)],
    Close: [(Phase.CONNECTING, Phase.CLOSED), (Phase.OPEN, Phase.CLOSED)],
    DenialStart: [(Phase.CONNECTING, Phase.DENYING)],
    DenialBody: [(Phase.DENYING, Phase.CLOSED)],
}


def advance(phase: Phase, sent: Sent) -> Phase:
    """Return the phase that a message leads to, from one in which something may follow.

    Raises:
        RuntimeError: the message cannot be sent in this phase.
    """
    for before, after in _STEPS[type(sent)]:
        if phase is before:
            return phase if isinstance(sent, DenialBody) and sent.more_body else after
    raise RuntimeError(
        f"expected {_EXPECTED[phase]} from an application whose connection {phase.value}, "
        f"got {_NAMES[type(sent)]}"
    )
