"""What is quicker asked of asyncio or trio itself than through anyio."""

from __future__ import annotations

import asyncio
import math
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar, final
from weakref import ref

import anyio
from anyio.lowlevel import current_token

from ._implementation import IMPLEMENTATION

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Generator
    from contextvars import Context

    from anyio.abc import TaskGroup

    WaitFor = Callable[[socket.socket], Awaitable[None]]

__all__ = [
    "LoopBell",
    "Waiter",
    "cancellation_look",
    "make_waiter",
    "running_asyncio",
    "stepping",
    "task_starter",
    "trio_waits",
]

T = TypeVar("T")


def running_asyncio() -> bool:
    """Whether the event loop is asyncio's, or one in its place such as uvloop."""
    return isinstance(current_token().native_token, asyncio.AbstractEventLoop)


def cancellation_look() -> Callable[[], bool]:
    """Return a function that says whether the running task's next checkpoint would raise.

    anyio's own way to ask that costs as much as a message. The function looks at the same
    attributes; where they are not as expected, it asks anyio.
    """
    try:
        return _asyncio_look() if running_asyncio() else _trio_look()
    except AttributeError:
        return _anyio_look


def _anyio_look() -> bool:
    return anyio.current_effective_deadline() == -math.inf


def _asyncio_look() -> Callable[[], bool]:
    from anyio._backends import _asyncio as backend

    states: dict[Any, Any] = backend._task_states.data  # type: ignore[attr-defined]
    loop = asyncio.get_running_loop()
    # What `current_task` looks into, where that is a dict still.
    running: Any = getattr(asyncio.tasks, "_current_tasks", None)
    found = type(running) is dict and running.get(loop) is asyncio.current_task() is not None
    current: Callable[[Any], Any] = running.get if found else asyncio.current_task
    scope: Any = anyio.CancelScope()
    # That they are there is all there is to see.
    (scope._cancel_called, scope._shield, scope._parent_scope)  # noqa: B018
    if IMPLEMENTATION == "native" and type(states) is dict:
        from ._nativeloop import CancellationLook

        return CancellationLook(running if found else current, loop, states)
    # What is kept for as long as a loop lives must not keep that.
    known = ref(loop)

    def look() -> bool:
        task = current(known())
        state = states.get(ref(task)) if task is not None else None
        scope = state.cancel_scope if state is not None else None
        while scope is not None:
            if scope._cancel_called:
                return True
            if scope._shield:
                return False
            scope = scope._parent_scope
        return False

    return look


def _trio_look() -> Callable[[], bool]:
    from trio.lowlevel import current_task

    (current_task()._cancel_status.effectively_cancelled)  # noqa: B018

    def look() -> bool:
        cancelled: bool = current_task()._cancel_status.effectively_cancelled
        return cancelled

    return look


def trio_waits() -> tuple[WaitFor, WaitFor]:
    """Return trio's functions that wait until a socket is readable, and writable."""
    from trio.lowlevel import wait_readable, wait_writable

    return wait_readable, wait_writable


@final
class PureWaiter:
    """Lets one task of asyncio wait until it is told to go on: ``value = await waiter``.

    A future would be told through the loop; this one can resume its task on the spot, from a
    callback of the loop. It has what a task wants of a future.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "_value", "_wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._wakeup: Callable[[PureWaiter], object] | None = None
        self._context: Context | None = None
        self._value: Any = None
        self._cancelled: asyncio.CancelledError | None = None

    def __await__(self) -> Generator[PureWaiter, None, Any]:
        if self._wakeup is not None:
            raise RuntimeError("another task waits already")
        self._value = self._cancelled = None
        self._asyncio_future_blocking = True
        yield self
        value, self._value = self._value, None
        return value

    @property
    def waiting(self) -> bool:
        """Whether a task waits."""
        return self._wakeup is not None

    def resume(self, value: object = None, /) -> None:
        """Run the task that waits, if one does, until it waits again.

        Only a callback of the loop may do that, not another task.
        """
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            assert self._context is not None
            self._value = value
            self._context.run(wakeup, self)

    def wake(self) -> None:
        """Have the task that waits, if one does, go on with the next turn of the loop."""
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            self._loop.call_soon(wakeup, self, context=self._context)

    # What a task calls.

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop."""
        return self._loop

    def add_done_callback(
        self, wakeup: Callable[[PureWaiter], object], /, *, context: Context
    ) -> None:
        """Take the callback that resumes the task."""
        self._wakeup = wakeup
        self._context = context

    def done(self) -> bool:
        """Whether the task was told to go on."""
        return self._wakeup is None

    def cancel(self, msg: object = None) -> bool:
        """Have the task go on with CancelledError; False if it goes on already."""
        if self._wakeup is None:
            return False
        # Cancel scopes know their own by the message.
        self._cancelled = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self.wake()
        return True

    def result(self) -> None:
        """Raise CancelledError if it was cancelled."""
        if self._cancelled is not None:
            raise self._cancelled


if TYPE_CHECKING or IMPLEMENTATION == "pure":
    Waiter = PureWaiter
else:
    from ._nativeloop import Waiter


class LoopBell:
    """Wakes the tasks of asyncio that wait for it at the moment, without an event's cost."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: tuple[Waiter, ...] = ()

    async def wait(self) -> None:
        """Wait until it is rung the next time."""
        waiter = make_waiter()
        self._waiters = (*self._waiters, waiter)
        try:
            await waiter
        except BaseException:
            self._waiters = tuple(other for other in self._waiters if other is not waiter)
            raise

    def ring(self) -> None:
        """Wake all who wait."""
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            waiter.wake()


def stepping() -> Callable[[Awaitable[T]], Awaitable[T]]:
    """Return what makes of a coroutine one that a waiter in it may step without its task.

    From a message's arrival to its receiver, the way through a task of asyncio, and through all
    that awaits the receiver, costs as much as the rest of the way.
    """
    if IMPLEMENTATION == "pure" or not running_asyncio():
        return _as_it_is
    from ._nativeloop import Stepped

    loop = asyncio.get_running_loop()

    def stepped(coroutine: Awaitable[T]) -> Awaitable[T]:
        if type(coroutine) is not CoroutineType:
            return coroutine
        return Stepped(coroutine, loop, asyncio.current_task(loop))

    return stepped


def _as_it_is(coroutine: Awaitable[T]) -> Awaitable[T]:
    return coroutine


def task_starter(task_group: TaskGroup) -> Callable[..., object]:
    """Return a function that starts tasks, to be cancelled and awaited with a task group.

    ``start(function, *args)`` does what the group's own `start_soon` does; on asyncio, that
    costs a tenth of an opening handshake.
    """
    if running_asyncio():
        return _Tasks(task_group).start_soon
    return task_group.start_soon


class _Tasks:
    """Plain tasks of asyncio, each in a cancel scope of its own.

    A task in the group stands for them: it is cancelled with the group, cancels them, and waits.
    """

    def __init__(self, task_group: TaskGroup) -> None:
        self._task_group = task_group
        self._loop = asyncio.get_running_loop()
        # The loop itself does not keep tasks from the garbage collector.
        self._tasks: dict[anyio.CancelScope, asyncio.Task[None] | None] = {}
        # Set when the last one has ended, once they are to end.
        self._ended: anyio.Event | None = None
        task_group.start_soon(self._keep)

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Have a task call a function."""
        scope = anyio.CancelScope()
        if self._ended is not None:
            scope.cancel()
        self._tasks[scope] = None
        task = self._loop.create_task(self._run(scope, function, args))
        # An eager one may have ended by now.
        if scope in self._tasks:
            self._tasks[scope] = task

    async def _run(
        self,
        scope: anyio.CancelScope,
        function: Callable[..., Awaitable[object]],
        args: tuple[Any, ...],
    ) -> None:
        try:
            with scope:
                await function(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            # The group is to fail with it.
            self._task_group.start_soon(_raise, exc)
        finally:
            del self._tasks[scope]
            if self._ended is not None and not self._tasks:
                self._ended.set()

    async def _keep(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self._ended = anyio.Event()
            for scope in list(self._tasks):
                scope.cancel()
            with anyio.CancelScope(shield=True):
                while self._tasks:
                    await self._ended.wait()
                    self._ended = anyio.Event()


async def _raise(error: BaseException) -> None:
    raise error


def make_waiter() -> Waiter:
    """Return a waiter for the running loop."""
    return Waiter(asyncio.get_running_loop())
