"""Waking tasks, at no cost where none waits."""

from __future__ import annotations

import anyio

__all__ = ["Bell"]


class Bell:
    """Wakes the tasks that wait for it at the moment.

    An event, with its queue, takes a kilobyte on asyncio. There is one only while a task waits:
    an idle connection has several bells, and none of them rings.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait until it is rung the next time."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

    def ring(self) -> None:
        """Wake all who wait."""
        event, self._event = self._event, None
        if event is not None:
            event.set()
