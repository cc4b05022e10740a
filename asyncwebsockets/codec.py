"""Bytes to events and back, for one open connection (RFC 6455 section 5)."""

from __future__ import annotations

import sys
import zlib
from abc import ABC, abstractmethod
from codecs import getincrementaldecoder
from typing import TYPE_CHECKING, Literal

from wsproto.frame_protocol import FrameDecoder, FrameProtocol, Opcode, ParseFailed

from ._implementation import IMPLEMENTATION
from .deflate import PerMessageDeflate
from .events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

if TYPE_CHECKING:
    from codecs import IncrementalDecoder
    from collections.abc import Sequence

    from wsproto.extensions import Extension

    from .deflate import Inflater

__all__ = [
    "EVENT_COST",
    "IMPLEMENTATION",
    "Codec",
    "CodecError",
    "PureCodec",
    "is_close_code",
    "make_codec",
    "size_of",
]

#: What a message, or a piece of one, costs of the read-ahead at least, in bytes.
EVENT_COST = 128

# Events decoded in one call, at most.
_MAX_EVENTS = 64

# A compressed message is handed on in pieces of at most this many bytes.
_SLICE = 64 * 1024

# The codes a Close may carry (RFC 6455 section 7.4, IANA's registry for 1012 to 1014).
_CLOSE_CODES = frozenset(
    (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, *range(3000, 5000))
)

_Utf8Decoder = getincrementaldecoder("utf-8")


def is_close_code(code: int) -> bool:
    """Whether a Close frame may carry this code."""
    return code in _CLOSE_CODES


def size_of(data: str | bytes | bytearray) -> int:
    """Return the bytes that text or bytes have on the wire."""
    return len(data.encode()) if isinstance(data, str) and not data.isascii() else len(data)


class CodecError(Exception):
    """The peer broke the protocol.

    Attributes:
        code: the close code that answers it.
        reason: what was wrong.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Codec(ABC):
    """Translates between bytes and wsproto's events.

    A message comes out as one event or as several bounded ones, the last of them with
    ``message_finished``; joining them is the receiver's business, and so is every limit.
    """

    @abstractmethod
    def receive_data(self, data: bytes, /) -> None:
        """Take bytes from the peer."""

    @abstractmethod
    def next_events(self, room: int = sys.maxsize, /) -> tuple[list[tuple[Event, int]], int]:
        """Return the next events, each with its cost, and the sum of the costs.

        That is either a run of messages and pieces of messages, until `room` is used up or 64
        have come, or one control frame alone, which costs nothing. A list without an event says
        that more bytes are needed. What an event costs is the size of its payload in bytes, of
        text in UTF-8, but `EVENT_COST` at least.

        Raises:
            CodecError: the peer broke the protocol; there is nothing more to come. It is raised
                once all events before it have been returned.
        """

    def next_message(self, limit: int, /) -> Event | None:
        """Return the next event if that can be told to be a whole message at one look.

        It is in one frame that is all there, and has `limit` bytes at most, compressed and
        inflated. Otherwise what comes next is left to `next_events`.
        """
        return None

    def pending(self, limit: int, /) -> bool:
        """Whether there is more to decode behind what `next_message` has returned.

        What has come of a message in one frame may wait for the rest of it; see `collecting`.
        """
        return False

    def collecting(self, limit: int, /) -> bool:
        """Whether a message is under way that `next_message` will return when all has come."""
        return False

    @property
    @abstractmethod
    def announced(self) -> int:
        """The bytes that the data frame under way is still to bring, as its header says.

        0 between frames, and for a compressed message, whose size is not known.
        """

    @abstractmethod
    def encode(self, event: Event, /) -> bytes:
        """Return the bytes of an event that is to be sent.

        Raises:
            UnicodeEncodeError: text that UTF-8 cannot express (a lone surrogate).
            TypeError: it is none that has a frame.
        """

    @abstractmethod
    def encode_message(self, data: str | bytes, final: bool, /) -> bytes:
        """Return the bytes of a message, or of a piece of one that `final` ends.

        Raises:
            UnicodeEncodeError: text that UTF-8 cannot express (a lone surrogate).
        """

    @abstractmethod
    def repeat(self, frame: bytes, /) -> bytes:
        """Return the frame of a whole message that another codec has encoded, to be sent by this.

        No message may be under way.
        """

    @property
    @abstractmethod
    def counts(self) -> tuple[int, int, int, int, int, int]:
        """The bytes, messages and pings so far, each received and sent.

        Bytes are those of frames, with their headers, as they are on the wire; a message counts
        with its end.
        """


class PureCodec(Codec):
    """The codec on wsproto's frame protocol.

    Where wsproto is laxer than the RFCs, or unbounded, the rules stand here: the order of
    frames, UTF-8, the codes of a Close, and inflation in slices.

    Args:
        client: whether this side is the client.
        extensions: those both sides have agreed on.
    """

    def __init__(self, *, client: bool, extensions: Sequence[Extension] = ()) -> None:
        self._frames = FrameProtocol(client, list(extensions))
        self._decoder = FrameDecoder(client, list(extensions))
        self._deflate = next((e for e in extensions if isinstance(e, PerMessageDeflate)), None)
        self._inflater: Inflater | None = (
            self._deflate.inflater(client=client) if self._deflate is not None else None
        )
        # The message under way, and how it is to be read.
        self._opcode: Opcode | None = None
        self._compressed = False
        self._utf8: IncrementalDecoder = _Utf8Decoder()
        # What the inflater's input was, while it has more to give: whether it ends
        # its frame and its message.
        self._ends = (False, False)
        # What comes next, where it was found behind a run of messages.
        self._next: Event | CodecError | None = None
        self._header_seen = False
        # What `counts` returns.
        self._bytes_received = self._bytes_sent = 0
        self._messages_received = self._messages_sent = 0
        self._pings_received = self._pings_sent = 0

    def receive_data(self, data: bytes, /) -> None:
        """Take bytes from the peer."""
        self._bytes_received += len(data)
        self._decoder.receive_bytes(data)

    @property
    def announced(self) -> int:
        """The bytes that the data frame under way is still to bring."""
        header = self._decoder.header
        if header is None or header.opcode.iscontrol() or self._compressed:
            return 0
        return header.payload_len - self._decoder.payload_consumed

    def next_events(self, room: int = sys.maxsize, /) -> tuple[list[tuple[Event, int]], int]:
        """Return the next events, each with its cost, and the sum of the costs."""
        run: list[tuple[Event, int]] = []
        total = 0
        while total < room and len(run) < _MAX_EVENTS:
            found, self._next = self._next, None
            try:
                event = found or self._next_event()
            except CodecError as exc:
                event = exc
            if isinstance(event, Message):
                cost = max(size_of(event.data), EVENT_COST)
                run.append((event, cost))
                total += cost
                continue
            if run:
                self._next = event
            elif isinstance(event, CodecError):
                raise event
            elif event is not None:
                run.append((event, 0))
            break
        return run, total

    def _next_event(self) -> Event | CodecError | None:
        """Return the next event, or None if more bytes are needed."""
        if self._inflater is not None and self._inflater.pending:
            return self._inflate()
        try:
            frame = self._decoder.process_buffer()
        except ParseFailed as exc:
            raise CodecError(int(exc.code), str(exc)) from None
        if frame is None:
            header = self._decoder.header
            if header is None or header.opcode.iscontrol() or self._header_seen:
                return None
            # A header alone is an event too: its length may be more than is allowed.
            self._begin_frame(header.opcode)
            self._header_seen = True
            return self._piece(b"", (False, False))
        opcode = frame.opcode
        payload = frame.payload
        assert isinstance(payload, bytes)
        if opcode.iscontrol():
            if opcode is Opcode.PING:
                self._pings_received += 1
                return Ping(payload)
            if opcode is Opcode.PONG:
                return Pong(payload)
            return self._close(payload)
        # wsproto calls the later parts of a frame that comes in parts continuations.
        if not self._header_seen:
            self._begin_frame(opcode)
        ends = (frame.frame_finished, frame.frame_finished and frame.message_finished)
        self._header_seen = not frame.frame_finished
        if self._compressed:
            assert self._inflater is not None
            self._inflater.feed(payload, ends[1])
            self._ends = ends
            return self._inflate()
        return self._piece(payload, ends)

    def _begin_frame(self, opcode: Opcode) -> None:
        """Check a data frame's opcode against the message under way (RFC 6455 section 5.4)."""
        if opcode is Opcode.CONTINUATION:
            if self._opcode is None:
                raise CodecError(1002, "a continuation frame without a message to continue")
            return
        if self._opcode is not None:
            raise CodecError(1002, "a new message before the last one was finished")
        self._opcode = opcode
        self._compressed = self._deflate is not None and self._deflate.compressed

    def _inflate(self) -> Event:
        assert self._inflater is not None
        try:
            data = self._inflater.read(_SLICE) if self._inflater.pending else b""
        except zlib.error as exc:
            raise CodecError(1007, f"invalid DEFLATE data: {exc}") from None
        return self._piece(data, (False, False) if self._inflater.pending else self._ends)

    def _piece(self, data: bytes, ends: tuple[bool, bool]) -> TextMessage | BytesMessage:
        frame_finished, message_finished = ends
        opcode = self._opcode
        if message_finished:
            self._opcode = None
            self._compressed = False
        if opcode is Opcode.BINARY:
            self._messages_received += message_finished
            return BytesMessage(data, frame_finished, message_finished)
        try:
            text = self._utf8.decode(data, message_finished)
        except UnicodeDecodeError as exc:
            raise CodecError(1007, f"invalid UTF-8 in a text message: {exc.reason}") from None
        self._messages_received += message_finished
        return TextMessage(text, frame_finished, message_finished)

    def _close(self, payload: bytes) -> CloseConnection:
        """Read a Close frame's payload (RFC 6455 section 5.5.1)."""
        if not payload:
            return CloseConnection(1005, "")
        if len(payload) == 1:
            raise CodecError(1002, "a Close frame with a payload of one byte")
        code = int.from_bytes(payload[:2], "big")
        if not is_close_code(code):
            raise CodecError(1002, f"a Close frame with the code {code}")
        try:
            return CloseConnection(code, payload[2:].decode())
        except UnicodeDecodeError as exc:
            raise CodecError(1007, f"invalid UTF-8 in a close reason: {exc.reason}") from None

    def encode(self, event: Event, /) -> bytes:
        """Return the bytes of an event that is to be sent."""
        frames = self._frames
        match event:
            case Message():
                return self.encode_message(event.data, event.message_finished)
            case Ping():
                frame = bytes(frames.ping(event.payload))
                self._pings_sent += 1
            case Pong():
                frame = bytes(frames.pong(event.payload))
            case CloseConnection(code=1005):
                frame = bytes(frames.close())
            case CloseConnection():
                frame = bytes(frames.close(event.code, event.reason))
            case _:
                raise TypeError(f"expected a message, ping, pong or close, got {event!r}")
        self._bytes_sent += len(frame)
        return frame

    def encode_message(self, data: str | bytes, final: bool, /) -> bytes:
        """Return the bytes of a message, or of a piece of one."""
        frame = bytes(self._frames.send_data(data, final))
        self._bytes_sent += len(frame)
        self._messages_sent += final
        return frame

    def repeat(self, frame: bytes, /) -> bytes:
        """Return the frame of a whole message that another codec has encoded."""
        self._bytes_sent += len(frame)
        self._messages_sent += 1
        return frame

    @property
    def counts(self) -> tuple[int, int, int, int, int, int]:
        """The bytes, messages and pings so far, each received and sent."""
        return (
            self._bytes_received,
            self._bytes_sent,
            self._messages_received,
            self._messages_sent,
            self._pings_received,
            self._pings_sent,
        )


if IMPLEMENTATION == "native":
    from ._native import Codec as NativeCodec

    Codec.register(NativeCodec)


def make_codec(
    role: Literal["client", "server"],
    extensions: Sequence[Extension] = (),
    implementation: Literal["native", "pure"] = IMPLEMENTATION,
) -> Codec:
    """Return the codec for a connection: the one place where it is chosen.

    The native one knows permessage-deflate alone; with any other extension it is the pure one.
    """
    client = role == "client"
    if implementation == "native":
        match extensions:
            case []:
                return NativeCodec(client, None, None)
            case [PerMessageDeflate() as deflate] if deflate.enabled():
                return NativeCodec(client, deflate, deflate.inflater(client=client))
    return PureCodec(client=client, extensions=extensions)
