"""How often operations that need not wait give way to others."""

from __future__ import annotations

from time import perf_counter

from anyio.lowlevel import RunVar, checkpoint

from ._loop import cancellation_look

__all__ = ["Pace"]

_MAX_OPERATIONS = 64
_MAX_BYTES = 64 * 1024
_MAX_SECONDS = 0.001

# What an operation counts for in bytes at least, so that one account keeps both limits.
_MIN_BYTES = _MAX_BYTES // _MAX_OPERATIONS


class Pace:
    """Looks for cancellation at each step, and yields to the scheduler often enough.

    A full checkpoint comes at least once per 64 operations, 64 KiB or millisecond, whichever
    is first, so that no connection starves another. There is one for all connections of an
    event loop: where one of them had to wait, every other has had its turn as well.

    ``if pace.due(size): await pace.give_way()``
    """

    __slots__ = ("_cancelled", "_left", "_until")

    def __init__(self) -> None:
        self._cancelled = cancellation_look()
        self.reset()

    @classmethod
    def current(cls) -> Pace:
        """Return that of the running event loop."""
        try:
            return _current.get()
        except LookupError:
            pace = cls()
            _current.set(pace)
            return pace

    def reset(self) -> None:
        """Start anew: the scheduler has run."""
        self._left = _MAX_BYTES
        self._until = perf_counter() + _MAX_SECONDS

    def due(self, size: int) -> bool:
        """Count an operation on `size` bytes; whether a checkpoint is due before it."""
        self._left -= size if size > _MIN_BYTES else _MIN_BYTES
        return self._left <= 0 or perf_counter() >= self._until or self._cancelled()

    async def give_way(self) -> None:
        """Yield to the scheduler, and see a cancellation."""
        await checkpoint()
        self.reset()

    async def step(self, size: int) -> None:
        """Count an operation on `size` bytes; a checkpoint if one is due."""
        if self.due(size):
            await self.give_way()


_current: RunVar[Pace] = RunVar("asyncwebsockets.pace")
