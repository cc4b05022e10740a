"""How often operations that need not wait give way to others."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from anyio.lowlevel import RunVar, checkpoint

from ._implementation import IMPLEMENTATION
from ._loop import cancellation_look

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pace"]

# A message that is received and one that is sent are an operation each.
_MAX_OPERATIONS = 128
_MAX_BYTES = 64 * 1024
_MAX_SECONDS = 0.001

# What an operation counts for in bytes at least, so that one account keeps both limits.
_MIN_BYTES = _MAX_BYTES // _MAX_OPERATIONS


class PureAccount:
    """Says when a checkpoint is due: the account of the operations since the last one.

    Args:
        cancelled: says whether the running task's next checkpoint would raise.
    """

    __slots__ = ("_cancelled", "_left", "_until", "turn")

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        #: Counts how often the scheduler was seen to run.
        self.turn: int = 0
        self.reset()

    def reset(self) -> None:
        """Start anew: the scheduler has run."""
        self.turn += 1
        self._left = _MAX_BYTES
        self._until = perf_counter() + _MAX_SECONDS

    def due(self, size: int, /) -> bool:
        """Count an operation on `size` bytes; whether a checkpoint is due before it."""
        self._left -= size if size > _MIN_BYTES else _MIN_BYTES
        return self._left <= 0 or perf_counter() >= self._until or self._cancelled()


if TYPE_CHECKING or IMPLEMENTATION == "pure":
    Account = PureAccount
else:
    from ._nativeloop import Account


class Pace(Account):
    """Looks for cancellation at each step, and yields to the scheduler often enough.

    A full checkpoint comes at least once per 128 operations, 64 KiB or millisecond, whichever
    is first, so that no connection starves another. There is one for all connections of an
    event loop: where one of them had to wait, every other has had its turn as well.

    ``if pace.due(size): await pace.give_way()``
    """

    __slots__ = ()

    @classmethod
    def current(cls) -> Pace:
        """Return that of the running event loop."""
        try:
            return _current.get()
        except LookupError:
            pace = cls(cancellation_look())
            _current.set(pace)
            return pace

    async def give_way(self) -> None:
        """Yield to the scheduler, and see a cancellation."""
        await checkpoint()
        self.reset()

    async def step(self, size: int) -> None:
        """Count an operation on `size` bytes; a checkpoint if one is due."""
        if self.due(size):
            await self.give_way()


_current: RunVar[Pace] = RunVar("asyncwebsockets.pace")
