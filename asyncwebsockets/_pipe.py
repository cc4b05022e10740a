"""The short way of bytes into a socket and out of it, where nothing else is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._implementation import IMPLEMENTATION

if TYPE_CHECKING:
    import socket

    from .pace import Pace
    from .transport import Sink

__all__ = ["MAX_JOINED", "READ_SIZE", "Pipe"]

#: Bytes asked for in one call.
READ_SIZE: int = 64 * 1024

#: More than that is not joined, but sent at once.
MAX_JOINED: int = 64 * 1024


class PurePipe:
    """What a pipe on a socket does for every message; all else is left to its other methods.

    The two are one object, so that there is one account of its state.
    """

    __slots__ = (
        "_backlog",
        "_blocked",
        "_failure",
        "_in_turn",
        "_joins",
        "_pace",
        "_sent",
        "_sink",
        "_sock",
        "_turn",
        "_written",
        "clogged",
        "pieces_sent",
    )

    _sock: socket.socket
    _pace: Pace
    # Who is handed what comes.
    _sink: Sink | None
    # Why the pipe is of no use any more.
    _failure: str | None
    # What was written and not sent, how many bytes were written, and how many sent of them.
    _backlog: list[bytes | memoryview]
    _written: int
    _sent: int
    # Whether the socket took less than it was given.
    _blocked: bool
    # Whether there is something that sends at the end of a turn what was joined in it, and the
    # last turn in which something was sent, so that what follows is joined.
    _joins: bool
    _turn: int
    # Whether the sink handles what has come, and what it writes is sent behind that.
    _in_turn: bool
    #: Whether the socket takes no more for now, or is broken.
    clogged: bool
    #: Counts the pieces that went out.
    pieces_sent: int

    def write(self, data: bytes) -> None:
        """Send bytes, or take them to be sent behind those before."""
        turn = self._pace.turn
        if self._backlog or (self._joins and self._turn == turn):
            self.write_behind(data)
            return
        if self._failure is not None:
            return
        self._turn = turn
        size = len(data)
        self._written += size
        try:
            sent = self._sock.send(data)
        except OSError as exc:
            self._keep_unsent(data, exc)
            return
        self._sent += sent
        self.pieces_sent += 1
        if sent < size:
            self._keep_unsent(memoryview(data)[sent:], None)

    def write_behind(self, data: bytes) -> None:
        """Take bytes to be sent with the others of this turn, where something does that."""
        if self._failure is not None:
            return
        self._written += len(data)
        self._backlog.append(data)
        if self._blocked:
            return
        if not self._joins or self._written - self._sent >= MAX_JOINED:
            self.flush()
        elif len(self._backlog) == 1 and not self._in_turn:
            self._flush_later()

    def on_readable(self) -> None:
        """Hand on what the socket has received. Called by the loop."""
        try:
            data = self._sock.recv(READ_SIZE)
        except OSError as exc:
            self._receive_failed(exc)
            return
        if not data or self._sink is None:
            self._receive_otherwise(data)
            return
        self._pace.reset()
        self._in_turn = True
        try:
            self._sink.data_received(data)
        finally:
            self._in_turn = False
        if self._backlog:
            self._end_turn()

    # The rest of the pipe.

    def flush(self) -> None:
        """Send what was joined, as far as the socket takes it."""
        raise NotImplementedError

    def _flush_later(self) -> None:
        raise NotImplementedError

    def _keep_unsent(self, data: bytes | memoryview, error: OSError | None) -> None:
        raise NotImplementedError

    def _receive_failed(self, error: OSError) -> None:
        raise NotImplementedError

    def _receive_otherwise(self, data: bytes) -> None:
        raise NotImplementedError

    def _end_turn(self) -> None:
        raise NotImplementedError


if TYPE_CHECKING or IMPLEMENTATION == "pure":
    Pipe = PurePipe
else:
    from ._nativeloop import Pipe
