"""The short way of whole messages through a channel, where nothing else is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from wsproto.connection import ConnectionState

from ._implementation import IMPLEMENTATION

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Awaitable

    from ._loop import Waiter
    from .codec import Codec, CodecError
    from .events import Event
    from .pace import Pace
    from .transport import Transport

__all__ = ["Lane"]

_OPEN = ConnectionState.OPEN
_PLAIN = (str, bytes)


class PureLane:
    """What a channel does for every message; all else is left to its other methods.

    The lane and the channel are one object, so that there is one account of its state.
    """

    __slots__ = (
        "_codec",
        "_heard",
        "_limit",
        "_pace",
        "_late",
        "_queue",
        "_receiver",
        "_state",
        "_taken",
        "_transport",
        "_undecoded",
        "_violation",
        "_whole",
    )

    _codec: Codec
    _transport: Transport
    _pace: Pace
    _state: ConnectionState
    # The task that receives, where the pipe reads by itself.
    _receiver: Waiter | None
    # Events and their costs.
    _queue: deque[tuple[Event, int]]
    # What waits for a clogged pipe, pongs and messages to many, with the bytes of messages.
    _late: list[tuple[Any, int]]
    # The largest message that is received, in bytes.
    _limit: int
    # Whether the codec may have something to decode.
    _undecoded: bool
    # Whether the receiver has taken something from the codec since the last look.
    _taken: bool
    # Whether who receives wants a message as a whole, or else its pieces as they come.
    _whole: bool
    # The rule that the peer broke behind the events queued; their receiver has a moment to
    # answer them before the connection is failed for it.
    _violation: CodecError | None
    # Whether there was a sign of life since the last look.
    _heard: bool

    def begin_receive(self) -> Event | Waiter | None:
        """Return a whole message, or what brings one or None; None if `receive` is to be called."""
        if self._queue:
            return self._take_queued()
        if self._state is not _OPEN or self._violation is not None:
            return None
        if self._undecoded:
            # One read brings no more bytes than may pass without a checkpoint.
            if self._pace.due(0):
                return None
            event = self._codec.next_message(self._limit)
            if event is not None:
                self._taken = True
                self._undecoded = self._codec.pending(self._limit)
                return event
        self._whole = True
        return self._receiver

    def data_received(self, data: bytes) -> None:
        """Handle what a pipe has read by itself: resume who receives with a message.

        It goes on to take more of them from the codec, as long as it does not wait.
        """
        self._heard = True
        receiver = self._receiver
        if not data or receiver is None or not receiver.waiting or self._undecoded:
            self._read(data)
            return
        try:
            self._codec.receive_data(data)
            event = self._codec.next_message(self._limit)
            if event is None:
                if not (self._whole and self._codec.collecting(self._limit)):
                    self._read(None)
                return
            self._undecoded = self._codec.pending(self._limit)
        except Exception as exc:
            self._reading_broke(exc)
            return
        receiver.resume(event)
        if self._undecoded:
            self._decode_soon()

    def begin_send(self, data: Any) -> Awaitable[None] | Literal[False] | None:
        """Send a message if that needs no waiting; return what to await for the rest.

        False if `send` is to be called: nothing was sent.
        """
        if type(data) not in _PLAIN or self._state is not _OPEN or self._late:
            return False
        if self._transport.clogged or self._pace.due(len(data)):
            return False
        self._write_message(data)
        clogged: bool = self._transport.clogged
        return self._drain() if clogged else None

    def _write_message(self, data: str | bytes) -> None:
        """Write a message, or what ends one in fragments, behind all that is held back."""
        frame = self._codec.encode_message(data, True)
        if self._undecoded:
            # What answers the messages of one read goes out together.
            self._transport.write_behind(frame)
        else:
            self._transport.write(frame)

    # The rest of the channel.

    def _take_queued(self) -> Event | None:
        raise NotImplementedError

    def _read(self, data: bytes | None) -> None:
        raise NotImplementedError

    def _reading_broke(self, error: Exception) -> None:
        raise NotImplementedError

    def _decode_soon(self) -> None:
        raise NotImplementedError

    async def _drain(self) -> None:
        raise NotImplementedError


if TYPE_CHECKING or IMPLEMENTATION == "pure":
    Lane = PureLane
else:
    from ._nativeloop import Lane
