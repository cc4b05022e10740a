"""The short way of events to their receiver, where nothing else is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._implementation import IMPLEMENTATION
from ._loop import Waiter

if TYPE_CHECKING:
    from .channel import Channel
    from .events import Event

__all__ = ["Front"]


class PureFront:
    """What a websocket does for every event it is iterated over for.

    The two are one object, so that there is one account of its state.
    """

    __slots__ = ("_channel", "_idle", "_receiving")

    _channel: Channel
    # Whether a task receives.
    _receiving: bool
    # Whether the next event can be taken as it is: no task receives, and no message is half read.
    _idle: bool

    def __aiter__(self) -> PureFront:
        return self

    async def __anext__(self) -> Event:
        if self._idle:
            event = self._channel.begin_receive()
            if isinstance(event, Waiter):
                self._receiving, self._idle = True, False
                try:
                    event = await event
                finally:
                    self._receiving, self._idle = False, True
            if event is not None:
                return event
        return await self._receive_next()

    async def _receive_next(self) -> Event:
        """Return the next event, or raise StopAsyncIteration at the end."""
        raise NotImplementedError


if TYPE_CHECKING or IMPLEMENTATION == "pure":
    Front = PureFront
else:
    from ._nativeloop import Front
