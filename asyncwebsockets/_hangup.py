"""Resets that uvloop does not tell of.

Where a reset is behind the last bytes, uvloop tells the reader of a socket once, and watches the
socket no more: the reader finds the bytes, and never hears of the reset. An epoll of our own, which
the loop watches, has no such gap, and costs nothing while nothing breaks.
"""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Hangups", "hangups_of"]


class Loop(Protocol):
    """What is needed of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> object:
        """Call a function whenever a descriptor is readable."""

    def remove_reader(self, fd: int, /) -> object:
        """Watch a descriptor no more."""


_of_loops: WeakKeyDictionary[Loop, Hangups] = WeakKeyDictionary()


class Hangups:
    """Calls a function when a socket breaks, once for each.

    Args:
        loop: what watches it, as long as there are sockets.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._functions: dict[int, Callable[[], object]] = {}
        self._epoll: select.epoll | None = None

    def add(self, descriptor: int, function: Callable[[], object]) -> None:
        """Watch a socket."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._look)
        # Errors and hang-ups are always told; each once, for nothing here takes them away.
        self._epoll.register(descriptor, select.EPOLLET)
        self._functions[descriptor] = function

    def remove(self, descriptor: int) -> None:
        """Watch a socket no more, before it is closed."""
        if self._functions.pop(descriptor, None) is None or self._epoll is None:
            return
        self._epoll.unregister(descriptor)
        if not self._functions:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _look(self) -> None:
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(0):
            function = self._functions.get(descriptor)
            if function is not None:
                function()
            if self._epoll is None:
                break


def hangups_of(loop: Loop) -> Hangups | None:
    """Return what watches sockets beside a loop, None for a loop that misses nothing."""
    if sys.platform != "linux" or not type(loop).__module__.startswith("uvloop"):
        return None
    hangups = _of_loops.get(loop)
    if hangups is None:
        hangups = _of_loops[loop] = Hangups(loop)
    return hangups
