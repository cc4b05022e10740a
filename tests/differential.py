"""Has both codecs do the same, and compares what they say."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from asyncwebsockets.codec import Codec, CodecError, PureCodec, make_codec, size_of
from asyncwebsockets.deflate import PerMessageDeflate
from asyncwebsockets.events import Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from asyncwebsockets import Deflate
    from asyncwebsockets.events import Event

IMPLEMENTATIONS: tuple[Any, Any] = ("pure", "native")


def agreed(options: Deflate) -> tuple[PerMessageDeflate, PerMessageDeflate]:
    """Return a client's and a server's extension after their negotiation."""
    client, server = PerMessageDeflate(options), PerMessageDeflate(options)
    answer = server.accept(f"permessage-deflate; {client.offer()}")
    assert answer is not None
    client.finalize(f"permessage-deflate; {answer}" if answer else "permessage-deflate")
    return client, server


def make(implementation: Any, client: bool, options: Deflate | None) -> Codec:
    extensions = [agreed(options)[not client]] if options is not None else []
    codec = make_codec("client" if client else "server", extensions, implementation)
    assert type(codec).__module__.endswith("_native") == (implementation == "native")
    return codec


def describe(event: Event) -> Any:
    """Return all there is to an event, and of what types."""
    fields = (
        vars(event)
        if not hasattr(event, "data")
        else {name: getattr(event, name) for name in ("data", "frame_finished", "message_finished")}
    )
    return type(event), [(name, type(value), value) for name, value in sorted(fields.items())]


def decode(codec: Codec, chunks: Iterable[bytes], rooms: Sequence[int]) -> list[Any]:
    """Return what comes of bytes, and of asking for so much of it at a time."""
    trace: list[Any] = []
    asked = 0
    for chunk in chunks:
        codec.receive_data(chunk)
        while True:
            room = rooms[asked % len(rooms)] if rooms else sys.maxsize
            asked += 1
            try:
                events, total = codec.next_events(room)
            except CodecError as exc:
                trace.append((exc.code, exc.reason, str(exc), codec.counts))
                return trace
            if not events:
                break
            trace.append(([(describe(event), cost) for event, cost in events], total))
            trace.append(codec.announced)
        trace.append((codec.announced, codec.counts))
    return trace


def decode_messages(codec: Codec, chunks: Iterable[bytes], limit: int) -> list[Any]:
    """Return the events of bytes, where the codec may be asked for whole messages first."""
    trace: list[Any] = []
    for chunk in chunks:
        codec.receive_data(chunk)
        while True:
            message: Any = codec.next_message(limit)
            if message is not None:
                assert message.frame_finished
                assert message.message_finished
                assert size_of(message.data) <= limit
                trace.append(describe(message))
                continue
            left = codec.pending(limit)
            try:
                events, _ = codec.next_events(1)
            except CodecError as exc:
                trace.append((exc.code, exc.reason, str(exc), codec.counts))
                return trace
            if not events:
                break
            # All that may wait is the beginning of a message.
            if not left and not isinstance(codec, PureCodec):
                (event, _), *more = events
                assert isinstance(event, Message)
                assert not event.frame_finished
                assert not more
            trace += [describe(event) for event, _ in events]
    return [*trace, codec.counts]


def decode_whole(codec: Codec, chunks: Iterable[bytes], limit: int) -> list[Any]:
    """Return the events of bytes, where a message under way is left until all of it has come.

    Pieces of a message are joined, since who waits for a whole message gets those rarely.
    """
    trace: list[Any] = []
    pieces: list[Any] = []
    chunks = list(chunks)
    for number, chunk in enumerate(chunks, 1):
        codec.receive_data(chunk)
        while True:
            event: Any = codec.next_message(limit)
            if event is None:
                if number < len(chunks) and codec.collecting(limit):
                    assert not pieces
                    break
                try:
                    events, _ = codec.next_events(1)
                except CodecError as exc:
                    return [*trace, (exc.code, exc.reason)]
                if not events:
                    break
                ((event, _),) = events
            if not isinstance(event, Message):
                trace.append(describe(event))
                continue
            pieces.append(event.data)
            if event.message_finished:
                trace.append(pieces[0][:0].join(pieces))
                pieces.clear()
    return [*trace, pieces[0][:0].join(pieces)] if pieces else trace


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut bytes in pieces, anywhere."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


def check_decoding(
    data: bytes,
    *,
    client: bool,
    cuts: Iterable[int] = (),
    rooms: Sequence[int] = (),
    options: Deflate | None = None,
) -> list[Any]:
    """Compare what the two make of bytes; return it."""
    chunks = split(data, cuts)
    pure, native = (
        decode(make(implementation, client, options), chunks, rooms)
        for implementation in IMPLEMENTATIONS
    )
    assert native == pure
    pure_events, *native_events = (
        decode_messages(make(implementation, client, options), chunks, limit)
        for implementation, limit in (
            ("pure", 0),
            ("native", 0),
            ("native", 100),
            ("native", 1 << 40),
        )
    )
    assert native_events == [pure_events] * 3
    pure_whole, *native_whole = (
        decode_whole(make(implementation, client, options), chunks, limit)
        for implementation, limit in (
            ("pure", 0),
            ("native", 0),
            ("native", 100),
            ("native", 1 << 40),
        )
    )
    assert native_whole == [pure_whole] * 3
    return pure
