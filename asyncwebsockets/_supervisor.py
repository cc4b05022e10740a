"""What goes on behind the handlers of a scope: reading for them, and timers."""

from __future__ import annotations

import heapq
import logging
import math
from abc import ABC, abstractmethod
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

__all__ = ["Supervised", "Supervisor"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")

# How long nobody may read from a connection before the supervisor does.
_TAKEOVER = 0.2

# Timers without a connection that are left alone, besides as many as there are connections.
_SPARE_TIMERS = 64


class Supervised(ABC):
    """A connection as the supervisor sees it."""

    __slots__ = ()

    @abstractmethod
    def tend(self) -> bool:
        """See to what has been left alone for a while; whether to come back soon."""

    @abstractmethod
    def release(self) -> None:
        """Do without the supervisor from here on."""

    @abstractmethod
    def on_deadline(self, now: float) -> float | None:
        """Do what was due at the deadline; return the next one, None for none."""


class _Timer:
    __slots__ = ("connection",)

    def __init__(self, connection: Supervised) -> None:
        self.connection: Supervised | None = connection


class Supervisor:
    """Looks after the connections of one scope: those of a `serve`, or the one of an `open_*`.

    A connection is read by the task that receives from it. Where no task does, the supervisor
    reads in its place within a fraction of a second, so that pings are answered and a Close is
    noticed; as soon as somebody receives again, it steps back. It has one task and one heap of
    timers, however many connections there are, and sleeps while each is being read.

    Args:
        task_group: where its tasks run.
    """

    def __init__(self, task_group: TaskGroup) -> None:
        self._task_group = task_group
        # A timer is emptied when its connection leaves: the heap keeps nothing alive.
        self._connections: dict[Supervised, _Timer] = {}
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = count()
        self._look_at = math.inf
        self._soon: list[Callable[[], object]] = []
        self._wake = anyio.Event()
        #: Whether it still works: not once its scope is being left.
        self.running: bool = True

    def add(self, connection: Supervised, deadline: float | None) -> None:
        """Look after a connection whose first deadline is given."""
        timer = self._connections[connection] = _Timer(connection)
        if deadline is not None:
            heapq.heappush(self._timers, (deadline, next(self._order), timer))
        self.look_soon()

    def remove(self, connection: Supervised) -> None:
        """Let go of a connection."""
        self._connections.pop(connection).connection = None
        if len(self._timers) > 2 * len(self._connections) + _SPARE_TIMERS:
            # At least half of them go, so this costs each connection no more than its timer did.
            self._timers = [entry for entry in self._timers if entry[2].connection is not None]
            heapq.heapify(self._timers)

    def look_soon(self) -> None:
        """Note that a connection was left alone, if only for the moment."""
        if self._look_at == math.inf:
            self._look_at = anyio.current_time() + _TAKEOVER
            self._wake.set()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function once the tasks that can run now have run."""
        if self.running:
            self._soon.append(function)
            self._wake.set()
        else:
            function()

    def spawn(self, function: Callable[[], Awaitable[Any]]) -> None:
        """Run a function in the background. What it raises is logged and harms nobody else."""
        self._task_group.start_soon(self._guard, function)

    async def _guard(self, function: Callable[[], Awaitable[Any]]) -> None:
        try:
            await function()
        except Exception:
            logger.exception("internal error behind a connection")

    async def run(self) -> None:
        """Do the work, until cancelled."""
        try:
            while True:
                soon, self._soon = self._soon, []
                for function in soon:
                    function()
                now = anyio.current_time()
                self._fire(now)
                if self._look_at <= now:
                    again = [connection.tend() for connection in self._connections]
                    self._look_at = now + _TAKEOVER if any(again) else math.inf
                until = min(self._timers[0][0] if self._timers else math.inf, self._look_at)
                self._wake = anyio.Event()
                with anyio.CancelScope(deadline=until):
                    await self._wake.wait()
        finally:
            self.running = False
            for function in self._soon:
                function()
            for connection in self._connections:
                connection.release()

    def _fire(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, _, timer = heapq.heappop(self._timers)
            if timer.connection is not None:
                deadline = timer.connection.on_deadline(now)
                if deadline is not None:
                    heapq.heappush(self._timers, (deadline, next(self._order), timer))
