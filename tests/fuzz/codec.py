"""Whatever bytes come, and however they are cut, the native codec says what the pure one says.

``python -m tests.fuzz.codec SECONDS [SEED]`` tries random mixtures of frames, good and bad, for so
long. What it finds it prints as a test, and ends with status 1. `check` and `check_native` take
bytes alone, so that fuzzers guided by coverage drive them as well.
"""

from __future__ import annotations

import random
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any

from asyncwebsockets import Deflate
from asyncwebsockets.codec import EVENT_COST, CodecError
from asyncwebsockets.events import Event, Message

from ..differential import check_decoding, make, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncwebsockets.codec import Codec

_DEFLATES = [
    None,
    None,
    Deflate(),
    Deflate(client_no_context_takeover=True, server_no_context_takeover=True),
    Deflate(client_max_window_bits=9, server_max_window_bits=9, mem_level=1),
]
_TEXTS = ["plain", "größer", "\u20ac\U0001f600", "\x00\x7f\x80\u07ff\u0800\uffff\U0010ffff"]
_OPCODES = [0, 1, 2, 8, 9, 10, 1, 2, 0, 3, 11]
_SIZES = [0, 1, 3, 124, 125, 126, 127, 128, 65_535, 65_536, 70_000]


def check(data: bytes) -> None:
    """Take the parameters from the first bytes, and decode the rest with both."""
    if len(data) < 4:
        return
    client, cuts, rooms, options = _parameters(data)
    check_decoding(data[4:], client=client, cuts=cuts, rooms=rooms, options=options)


def check_native(data: bytes) -> None:
    """Have the native codec alone decode the same bytes, cut and whole, and encode them again.

    That is little to ask of it; this is run under sanitizers.
    """
    if len(data) < 4:
        return
    client, cuts, rooms, options = _parameters(data)
    wire = data[4:]
    whole = _decode(make("native", client, options), [wire], [], None)
    for limit in (None, 100, 1 << 40):
        in_pieces = _decode(make("native", client, options), split(wire, cuts), rooms, limit)
        # Within one piece of output, zlib looks back further than a small window allows.
        assert in_pieces == whole or (options is not None and options.client_max_window_bits < 15)
    sender, receiver = make("native", not client, options), make("native", client, options)
    for event in whole:
        if isinstance(event, Event):
            assert _decode(receiver, [sender.encode(event)], [], None) == [event]


def _parameters(data: bytes) -> tuple[bool, list[int], list[int], Deflate | None]:
    mode, first, second, room = data[:4]
    return (
        bool(mode & 1),
        [] if mode & 2 else [first, second * 7, first * second],
        [] if mode & 4 else [1 + room * 16],
        _DEFLATES[mode // 8 % len(_DEFLATES)],
    )


def _decode(
    codec: Codec, chunks: Sequence[bytes], rooms: Sequence[int], limit: int | None
) -> list[Any]:
    """Return the control frames and whole messages of bytes, and the code that ends them.

    With a limit, whole messages up to that size are asked for first.
    """
    found: list[Any] = []
    pieces: list[Message[Any]] = []
    for chunk in chunks:
        codec.receive_data(chunk)
        while True:
            message = codec.next_message(limit) if limit is not None else None
            if message is not None:
                found.append(message)
                continue
            if limit is not None:
                codec.pending(limit)
            try:
                events, _ = codec.next_events(rooms[0]) if rooms else codec.next_events()
            except CodecError as exc:
                # What is wrong with a message's bytes may be seen before they are inflated, or
                # after, as they come.
                return [*found, exc.code]
            if not events:
                break
            for event, cost in events:
                if not isinstance(event, Message):
                    assert cost == 0
                    found.append(event)
                    continue
                assert cost >= EVENT_COST
                pieces.append(event)
                if event.message_finished:
                    # mypy does not know that they are of one type.
                    empty: Any = event.data[:0]
                    found.append(type(event)(empty.join(piece.data for piece in pieces)))
                    pieces.clear()
            assert codec.announced >= 0
    return found


def frames(source: random.Random, *, masked: bool, compressed: bool) -> bytes:
    """Return some frames, most of them as they should be."""
    result = bytearray()
    for _ in range(source.randrange(1, 9)):
        opcode = source.choice(_OPCODES)
        payload = _payload(source, opcode)
        first = opcode | (0x80 if source.random() < 0.7 or opcode >= 8 else 0)
        if compressed and opcode in (1, 2) and source.random() < 0.6:
            first |= 0x40
            deflater = zlib.compressobj(wbits=-source.choice([9, 12, 15]))
            payload = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
            payload = payload[:-4] if source.random() < 0.8 else payload
        if source.random() < 0.03:
            first ^= 1 << source.randrange(4, 8)
        result += _frame(source, first, payload, masked != (source.random() < 0.02))
    for _ in range(source.choice([0, 0, 0, 1, 3])):
        result[source.randrange(len(result))] = source.randrange(256)
    return bytes(result[: source.choice([None, None, source.randrange(len(result) + 1)])])


def _payload(source: random.Random, opcode: int) -> bytes:
    if opcode == 8:
        code = source.choice([1000, 1001, 1005, 1011, 1014, 1015, 3000, 4999, 5000])
        return source.choice([b"", b"\x03", code.to_bytes(2, "big") + b"why \xc3\xa9"])
    size = source.choice(_SIZES) if source.random() < 0.3 else source.randrange(40)
    if opcode >= 9:
        return source.randbytes(min(size, source.choice([125, 125, 125, 126])))
    if source.random() < 0.5:
        return source.randbytes(size)
    text = (source.choice(_TEXTS) * (size // 4 + 1)).encode()
    return text[source.choice([0, 0, 0, 1]) : size]


def _frame(source: random.Random, first: int, payload: bytes, masked: bool) -> bytes:
    size = len(payload)
    extended = 0 if size < 126 else 2 if size < 1 << 16 else 8
    if source.random() < 0.02:
        extended = source.choice([2, 8]) if size < 1 << 16 else 8
    head = bytearray([first, {0: size, 2: 126, 8: 127}[extended]])
    head += size.to_bytes(extended, "big") if extended else b""
    if not masked:
        return bytes(head) + payload
    head[1] |= 0x80
    mask = source.randbytes(4)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return bytes(head) + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def main(seconds: float, seed: int) -> int:
    source = random.Random(seed)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        mode = source.randrange(256)
        options = _DEFLATES[mode // 8 % len(_DEFLATES)]
        data = bytes([mode, *source.randbytes(3)]) + frames(
            source, masked=not mode & 1, compressed=options is not None
        )
        try:
            check(data)
        except AssertionError as exc:
            print(f"{exc}\n\ncheck(bytes.fromhex({data.hex()!r}))")
            return 1
        tried += 1
    print(f"{tried} streams, seed {seed}: no difference")
    return 0


if __name__ == "__main__":
    given = [float(argument) for argument in sys.argv[1:]]
    sys.exit(main(given[0] if given else 60, int(given[1]) if len(given) > 1 else 0))
