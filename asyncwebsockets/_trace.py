"""A line of the log for each frame, in both directions, where somebody wants to see that."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from ._observing import describe
from .codec import Codec, CodecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .events import Address, Event

__all__ = ["traced"]

logger: logging.Logger = logging.getLogger("asyncwebsockets.frames")

_NAMES = {0: "continuation", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
_FLAGS = ((0x80, "fin"), (0x40, "rsv1"), (0x20, "rsv2"), (0x10, "rsv3"))


def traced(codec: Codec, role: str, peer: Address) -> Codec:
    """Return a codec that logs the frames, if that is wanted now, or the codec as it is.

    Args:
        codec: the connection's.
        role: this side's, with which its lines begin.
        peer: the peer's address, which comes next.
    """
    if not logger.isEnabledFor(logging.DEBUG):
        return codec
    return TracedCodec(codec, f"{role}, {describe(peer)}")


class TracedCodec(Codec):
    """Another codec, whose bytes are looked at on their way.

    Payloads are not logged, a Close's code aside: they are the user's.

    Args:
        codec: does the work.
        connection: what the lines begin with.
    """

    def __init__(self, codec: Codec, connection: str) -> None:
        self._codec = codec
        self._connection = connection
        self._received = _Frames()
        self._sent = _Frames()
        # Behind a broken rule there are no frames any more.
        self._broken = False

    def receive_data(self, data: bytes, /) -> None:
        """Take bytes from the peer."""
        if not self._broken:
            for frame in self._received.feed(data):
                logger.debug("%s: received %s", self._connection, frame)
        self._codec.receive_data(data)

    def next_events(self, room: int = sys.maxsize, /) -> tuple[list[tuple[Event, int]], int]:
        """Return the next events, each with its cost, and the sum of the costs."""
        try:
            return self._codec.next_events(room)
        except CodecError:
            self._broken = True
            raise

    def next_message(self, limit: int, /) -> Event | None:
        """Return the next event if that can be told to be a whole message at one look."""
        return self._codec.next_message(limit)

    def pending(self, limit: int, /) -> bool:
        """Whether there is more to decode behind what `next_message` has returned."""
        return self._codec.pending(limit)

    def collecting(self, limit: int, /) -> bool:
        """Whether a message is under way that `next_message` will return when all has come."""
        return self._codec.collecting(limit)

    @property
    def announced(self) -> int:
        """The bytes that the data frame under way is still to bring."""
        return self._codec.announced

    def encode(self, event: Event, /) -> bytes:
        """Return the bytes of an event that is to be sent."""
        return self._log_sent(self._codec.encode(event))

    def encode_message(self, data: str | bytes, final: bool, /) -> bytes:
        """Return the bytes of a message, or of a piece of one."""
        return self._log_sent(self._codec.encode_message(data, final))

    def repeat(self, frame: bytes, /) -> bytes:
        """Return the frame of a whole message that another codec has encoded."""
        return self._log_sent(self._codec.repeat(frame))

    @property
    def counts(self) -> tuple[int, int, int, int, int, int]:
        """The bytes, messages and pings so far, each received and sent."""
        return self._codec.counts

    def _log_sent(self, data: bytes) -> bytes:
        for frame in self._sent.feed(data):
            logger.debug("%s: sent %s", self._connection, frame)
        return data


class _Frames:
    """The frames of one direction (RFC 6455 section 5.2), as far as their headers tell."""

    def __init__(self) -> None:
        self._data = bytearray()
        # The bytes of a payload that are still to come.
        self._payload = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """Take bytes; say what each frame is whose header has come, and of a Close its code."""
        self._data += data
        while True:
            skipped = min(self._payload, len(self._data))
            del self._data[:skipped]
            self._payload -= skipped
            frame = self._next()
            if frame is None:
                return
            yield frame

    def _next(self) -> str | None:
        data = self._data
        if len(data) < 2:
            return None
        opcode, length = data[0] & 15, data[1] & 127
        extended = {126: 2, 127: 8}.get(length, 0)
        mask_at = 2 + extended
        size = mask_at + (4 if data[1] & 128 else 0)
        if len(data) < size or (opcode == 8 and len(data) < size + min(length, 2)):
            return None
        if extended:
            length = int.from_bytes(data[2:mask_at], "big")
        name = _NAMES.get(opcode, f"opcode {opcode}")
        if opcode == 8 and length >= 2:
            code = int.from_bytes(data[size : size + 2], "big")
            if size > mask_at:
                code ^= int.from_bytes(data[mask_at : mask_at + 2], "big")
            name = f"close {code}"
        flags = [flag for bit, flag in _FLAGS if data[0] & bit]
        del data[:size]
        self._payload = length
        return ", ".join([name, *flags, f"{length} bytes"])
