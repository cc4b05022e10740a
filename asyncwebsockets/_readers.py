"""Watching the sockets of a loop of asyncio's until they are readable.

A loop's own way costs several system calls a socket, most of all where it is uvloop; there, too,
the reader of a socket is told once of a reset behind the last bytes, and finds the bytes only. An
epoll of our own, which the loop watches, has the sockets that are ready handled in one go.
"""

from __future__ import annotations

import contextlib
import select
import sys
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EpollReaders", "LoopReaders", "Readers", "readers_of"]


class Loop(Protocol):
    """What is needed of an event loop."""

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> object:
        """Call a function whenever a descriptor is readable."""

    def remove_reader(self, fd: int, /) -> object:
        """Watch a descriptor no more."""

    def call_exception_handler(self, context: dict[str, Any], /) -> object:
        """Report an exception of a callback."""


class Readers(Protocol):
    """Calls functions whenever their sockets are readable, have ended or are broken."""

    def resume(self, descriptor: int, function: Callable[[], object], /) -> None:
        """Watch a socket, which is not watched at the moment."""

    def pause(self, descriptor: int, /) -> None:
        """Watch a socket no more for now."""

    def forget(self, descriptor: int, /) -> None:
        """Watch a socket no more, before it is closed; it need not be watched."""


class _OfLoop:
    """Lives as long as a loop, and so must not keep that."""

    def __init__(self, loop: Loop) -> None:
        self._loop_or_none = ref(loop)

    @property
    def _loop(self) -> Loop:
        loop = self._loop_or_none()
        assert loop is not None
        return loop


class LoopReaders(_OfLoop):
    """Has the loop itself watch each socket."""

    def resume(self, descriptor: int, function: Callable[[], object], /) -> None:
        """Watch a socket."""
        self._loop.add_reader(descriptor, function)

    def pause(self, descriptor: int, /) -> None:
        """Watch a socket no more for now."""
        self._loop.remove_reader(descriptor)

    def forget(self, descriptor: int, /) -> None:
        """Watch a socket no more."""
        self._loop.remove_reader(descriptor)


class EpollReaders(_OfLoop):
    """Has the loop watch an epoll, which watches the sockets, as long as there are any."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        # What to call for each socket in the epoll, None for one that is paused.
        self._functions: dict[int, Callable[[], object] | None] = {}
        self._epoll: select.epoll | None = None

    def resume(self, descriptor: int, function: Callable[[], object], /) -> None:
        """Watch a socket."""
        if descriptor not in self._functions:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._loop.add_reader(self._epoll.fileno(), self._look)
            self._epoll.register(descriptor, select.EPOLLIN)
        self._functions[descriptor] = function

    def pause(self, descriptor: int, /) -> None:
        """Watch a socket no more for now."""
        # It leaves the epoll when it turns out that something has come: often it is closed before.
        self._functions[descriptor] = None

    def forget(self, descriptor: int, /) -> None:
        """Watch a socket no more."""
        if descriptor not in self._functions:
            return
        del self._functions[descriptor]
        assert self._epoll is not None
        # Its user may have closed it already, which is the same to the epoll.
        with contextlib.suppress(OSError):
            self._epoll.unregister(descriptor)
        if not self._functions:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _look(self) -> None:
        assert self._epoll is not None
        for descriptor, _ in self._epoll.poll(0):
            # An earlier one of these may have had it forgotten, and even the last of all.
            function = self._functions.get(descriptor)
            if function is None:
                self.forget(descriptor)
                continue
            try:
                function()
            except Exception as exc:
                self._loop.call_exception_handler(
                    {"message": "Exception in the reader of a socket", "exception": exc}
                )


_of_loops: WeakKeyDictionary[Loop, Readers] = WeakKeyDictionary()


def readers_of(loop: Loop) -> Readers:
    """Return what watches the sockets of a loop."""
    readers = _of_loops.get(loop)
    if readers is None:
        kind = EpollReaders if sys.platform == "linux" else LoopReaders
        readers = _of_loops[loop] = kind(loop)
    return readers
