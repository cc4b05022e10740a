"""Cancels what is awaited at its first await, then at its second, and so on to the last."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable

#: Whether each await is tried, and not only some of those in the middle (make cancellation).
EVERY_STEP = bool(os.environ.get("ASYNCWEBSOCKETS_EVERY_STEP"))

# Awaits tried of each scenario otherwise.
_SAMPLE = 6

# A cancellation that comes as the await begins to wait, a turn of the loop later, together with
# what is waited for, and when it has just ended.
MOMENTS = ("in", "during", "behind")


class Cut:
    """A place for one cancellation.

    Args:
        step: the await at which it comes, counted from 1; 0 for before the first, None for none.
        moment: one of `MOMENTS`.
    """

    def __init__(self, step: int | None = None, moment: str = "in") -> None:
        self.step = step
        self.moment = moment
        #: The awaits there were.
        self.count = 0
        self.cancelled = False

    async def run(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Await a function's result, and cancel that at its step; once."""
        scope = anyio.CancelScope()
        if self.step == 0:
            scope.cancel()
        if self.moment != "during":
            with scope:
                await _Driven(self, function(), scope.cancel)
        else:
            reached = anyio.Event()

            async def follow() -> None:
                await reached.wait()
                scope.cancel()

            async with anyio.create_task_group() as tg:
                tg.start_soon(follow)
                with scope:
                    await _Driven(self, function(), reached.set)
                tg.cancel_scope.cancel()
        self.cancelled = scope.cancelled_caught


class _Driven:
    """Passes on what a coroutine says to its event loop, and counts how often it does."""

    def __init__(
        self, cut: Cut, coroutine: Coroutine[Any, Any, object], cancel: Callable[[], object]
    ) -> None:
        self._cut = cut
        self._coroutine = coroutine
        self._cancel = cancel

    def __await__(self) -> Generator[Any, Any, object]:
        cut = self._cut
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                if error is None:
                    said = self._coroutine.send(value)
                else:
                    said = self._coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            cut.count += 1
            if cut.count == cut.step and cut.moment != "behind":
                self._cancel()
            value = error = None
            try:
                value = yield said
            except BaseException as exc:
                error = exc
            if cut.count == cut.step and cut.moment == "behind":
                self._cancel()


async def at_each_step(scenario: Callable[[Cut], Awaitable[object]]) -> None:
    """Run a scenario again and again, cancelled at one await after the other.

    After each run, no task and no descriptor is left.

    Raises:
        AssertionError: it says where the cancellation came.
    """
    whole = Cut()
    # What an event loop opens once for all is there after this.
    await scenario(whole)
    for moment in MOMENTS:
        for step in _chosen(whole.count):
            before = _held()
            try:
                with anyio.fail_after(20):
                    await scenario(Cut(step, moment))
                await _nothing_left(before)
            except Exception as exc:
                where = f"cancelled {moment} await {step} of {whole.count}"
                raise AssertionError(f"{where}: {_first(exc)!r}") from exc


def _chosen(count: int) -> Iterable[int]:
    if EVERY_STEP or count <= _SAMPLE:
        return range(count + 1)
    middle = [round(count * part / (_SAMPLE - 3)) for part in range(1, _SAMPLE - 3)]
    return sorted({0, 1, 2, *middle, count})


def _first(exc: BaseException) -> BaseException:
    while hasattr(exc, "exceptions"):
        exc = exc.exceptions[0]
    return exc


def _held() -> tuple[set[int], int]:
    tasks = {task.id for task in anyio.get_running_tasks()}
    return tasks, len(os.listdir("/proc/self/fd"))


async def _nothing_left(before: tuple[set[int], int]) -> None:
    # Event loops close transports in a later turn.
    for _ in range(200):
        tasks, descriptors = _held()
        if tasks <= before[0] and descriptors <= before[1]:
            return
        await checkpoint()
    tasks, descriptors = _held()
    left = [task for task in anyio.get_running_tasks() if task.id not in before[0]]
    assert not left
    assert descriptors <= before[1], "a descriptor is left"
    assert tasks <= before[0]
