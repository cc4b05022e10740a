"""Whatever bytes come, and however they are cut, the native codec says what the pure one says.

``python -m tests.fuzz.codec SECONDS [SEED]`` tries random mixtures of frames, good and bad, for so
long. What it finds it prints as a test, and ends with status 1. `check` takes bytes alone, so that
a fuzzer guided by coverage can drive it as well.
"""

from __future__ import annotations

import random
import sys
import time
import zlib

from asyncwebsockets import Deflate

from ..differential import check_decoding

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
    mode, first, second, room = data[:4]
    check_decoding(
        data[4:],
        client=bool(mode & 1),
        cuts=[] if mode & 2 else [first, second * 7, first * second],
        rooms=[] if mode & 4 else [1 + room * 16],
        options=_DEFLATES[mode // 8 % len(_DEFLATES)],
    )


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
