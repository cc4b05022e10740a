"""How often an operation that need not wait gives way to others."""

from __future__ import annotations

from time import perf_counter

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

__all__ = ["Pace"]

_MAX_OPERATIONS = 64
_MAX_BYTES = 64 * 1024
_MAX_SECONDS = 0.001


class Pace:
    """Looks for cancellation at each step, and yields to the scheduler often enough.

    A full checkpoint comes at least once per 64 operations, 64 KiB or millisecond, whichever
    is first, so that no connection starves another.
    """

    __slots__ = ("_bytes", "_operations", "_since")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew: a full checkpoint has just happened elsewhere."""
        self._operations = 0
        self._bytes = 0
        self._since = perf_counter()

    async def step(self, size: int) -> None:
        """Count an operation on `size` bytes; a checkpoint if one is due."""
        self._operations += 1
        self._bytes += size
        if (
            self._operations >= _MAX_OPERATIONS
            or self._bytes >= _MAX_BYTES
            or perf_counter() - self._since >= _MAX_SECONDS
        ):
            await checkpoint()
            self.reset()
        else:
            await checkpoint_if_cancelled()
