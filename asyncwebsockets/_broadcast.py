"""Sending one message to many connections."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import anyio

from ._shared import Shared
from .errors import ConnectionClosed
from .pace import Pace
from .websocket import check_data

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .websocket import Data, Websocket

__all__ = ["broadcast"]

_WAYS = ("wait", "drop", "disconnect")


async def broadcast(
    websockets: Iterable[Websocket],
    data: Data,
    *,
    when_slow: Literal["wait", "drop", "disconnect"] = "disconnect",
    max_held: int = 256 * 1024,
) -> None:
    """Send a message to many connections, so that a slow reader does not delay the rest.

    It is framed once, and compressed once for all connections with the same parameters and
    without context takeover. Connections that have ended are left out. A connection that does
    not read at the moment is sent the message later, in order; `when_slow` says what becomes of
    one for which too much is waiting.

    Cancelling it leaves some connections without the message; none has half of it.

    Args:
        websockets: the connections.
        data: ``str`` for text; ``bytes``, ``bytearray`` or ``memoryview`` for binary.
        when_slow: "disconnect" closes the connection with 1008; "drop" leaves out the oldest
            messages that wait; "wait" returns only once every connection has taken the message.
            Whatever it says, a connection is waited for that is in the middle of a fragmented
            message, that has no scope (``create_*``), or whose carrier does not tell whether the
            peer reads (an ASGI server).
        max_held: bytes of messages that may wait for one connection, beside those that its pipe
            has taken.

    Raises:
        TypeError: the data is none of these.
        ValueError: the text cannot be expressed in UTF-8 (a lone surrogate), or an argument is
            none of those above.
    """
    if when_slow not in _WAYS:
        raise ValueError(f"expected when_slow to be one of {_WAYS}, got {when_slow!r}")
    if max_held < 0:
        raise ValueError(f"expected max_held of 0 or more, got {max_held}")
    message = Shared(check_data(data)[1])
    pace = Pace.current()
    limit = 0 if when_slow == "wait" else max_held
    slow = []
    for websocket in list(websockets):
        if pace.due(message.size):
            await pace.give_way()
        pushed = websocket.push(message, limit, when_slow == "drop")
        if not pushed:
            slow.append((websocket, pushed))
    if not slow:
        return
    async with anyio.create_task_group() as task_group:
        for websocket, pushed in slow:
            if pushed is None or when_slow == "wait":
                task_group.start_soon(_send, websocket, data)
            else:
                reason = f"more than {max_held} bytes wait for the peer to read"
                task_group.start_soon(websocket.fail, 1008, reason)


async def _send(websocket: Websocket, data: Data) -> None:
    with suppress(ConnectionClosed):
        await websocket.send(data)
