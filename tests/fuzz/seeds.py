"""Writes what the corpora begin with: the RFCs' own examples, and frames as Autobahn sends them.

``python -m tests.fuzz.seeds``
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

from ..frames import REQUEST, close_payload, frame
from .targets import corpus

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first bytes of an input of `codec`: the role and the way to read, then cuts and room.
_WHOLE = 0b110
_CUT = 0
_ON_CLIENT = 1
# RFC 7692 section 7.2.3.1's "Hello", compressed.
_HELLO = bytes.fromhex("f248cdc9c90700")
_DEFLATE_OPTIONS = 16  # The third of tests.fuzz.codec's, the defaults.


def _deflated(data: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    compressed = deflater.compress(data) + deflater.flush(flush)
    return compressed[:-4] if flush == zlib.Z_SYNC_FLUSH else compressed


def _rfc_6455() -> Iterator[bytes]:
    """Section 5.7."""
    for text in (
        "8105 48656c6c6f",
        "0103 48656c 8002 6c6f",
        "8905 48656c6c6f 8a05 48656c6c6f",
        "827e0100" + "00" * 256,
        # Begun, for a fuzzer's inputs are short.
        "827f0000000000010000" + "00" * 256,
    ):
        yield bytes([_WHOLE | _ON_CLIENT, 3, 5, 1]) + bytes.fromhex(text)
    for text in ("8185 37fa213d 7f9f4d5158", "8a85 37fa213d 7f9f4d5158"):
        yield bytes([_CUT, 3, 5, 1]) + bytes.fromhex(text)


def _rfc_7692() -> Iterator[bytes]:
    """Section 7.2.3."""
    for text in (
        "c107 f248cdc9c90700",
        "4103 f248cd 8004 c9c90700",
        # Two messages with one context, a stored block, a final block, and two blocks.
        "c107 f248cdc9c90700 c105 f200110000",
        "c10b 000500faff48656c6c6f00",
        "c108 f348cdc9c9070000",
        "c10d f248050000 00ffffcac9c90700",
    ):
        yield bytes([_DEFLATE_OPTIONS | _WHOLE | _ON_CLIENT, 3, 5, 1]) + bytes.fromhex(text)
        yield bytes([_DEFLATE_OPTIONS | _ON_CLIENT, 3, 5, 1]) + bytes.fromhex(text)


def _like_autobahn() -> Iterator[bytes]:
    """Frames after the suite's sections 1 to 7, 9, 12 and 13."""
    text = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    streams = [
        *(frame(1, b"*" * size, masked=True) for size in (0, 125, 126, 127, 128)),
        *(frame(2, b"\xfe" * size, masked=True) for size in (125, 126, 127, 128)),
        *(frame(9, b"\xfe" * size, masked=True) for size in (0, 125, 126)),
        frame(10, b"unsolicited", masked=True) + frame(9, b"payload", masked=True),
        *(frame(1, b"x", masked=True, rsv=rsv) + frame(9, masked=True) for rsv in (1, 2, 3, 4, 7)),
        *(frame(opcode, b"x", masked=True) for opcode in (3, 7, 11, 15)),
        frame(9, b"fragment", masked=True, fin=False) + frame(0, b"x", masked=True),
        frame(1, b"a", masked=True, fin=False)
        + frame(9, b"between", masked=True)
        + frame(0, b"b", masked=True),
        frame(0, b"nothing to continue", masked=True),
        frame(1, b"a", masked=True, fin=False) + frame(1, b"b", masked=True),
        frame(1, masked=True, fin=False) * 2 + frame(0, masked=True),
        b"".join(
            frame(0 if index else 1, bytes([byte]), masked=True, fin=index == len(text) - 1)
            for index, byte in enumerate(text)
        ),
        *(
            frame(1, bad, masked=True)
            for bad in (
                b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
                b"\xf4\x90\x80\x80",
                b"\xc0\xaf",
                b"\xf8\x88\x80\x80\x80",
                b"\xed\xbf\xbf",
                b"\xce\xba\xe1",
            )
        ),
        *(
            frame(8, close_payload(code, "why"), masked=True)
            for code in (0, 999, 1000, 1005, 1006, 1014, 1016, 2999, 3000, 4999, 5000, 65_535)
        ),
        frame(8, masked=True) + frame(1, b"late", masked=True),
        frame(8, b"\x03", masked=True),
        frame(8, close_payload(1000) + b"\xce\xba\xe1", masked=True),
        frame(8, close_payload(1000, "*" * 124), masked=True),
        frame(2, length=b"\x7f" + (1 << 62).to_bytes(8, "big"), masked=True),
        frame(2, length=b"\x7f" + (1 << 63).to_bytes(8, "big"), masked=True),
        frame(2, b"x", length=b"\x7e\x00\x01", masked=True),
    ]
    for stream in streams:
        yield bytes([_WHOLE, 3, 5, 1]) + stream
        yield bytes([_CUT, 7, 2, 1]) + stream
    for options in (16, 24, 32):
        packed = _deflated(b"the same, " * 20)
        half = len(packed) // 2
        for stream in (
            frame(1, packed, masked=True, rsv=4) * 2,
            frame(1, packed[:half], masked=True, rsv=4, fin=False)
            + frame(9, b"between", masked=True)
            + frame(0, packed[half:], masked=True),
            frame(2, _deflated(bytes(200_000)), masked=True, rsv=4),
            frame(2, _deflated(b"ends", zlib.Z_FINISH) + b"\x00", masked=True, rsv=4),
            frame(1, _HELLO, masked=True, rsv=4) + frame(1, b"plain", masked=True),
            frame(1, b"\xff\xff\xff", masked=True, rsv=4),
            frame(1, packed[:half], masked=True, rsv=4, fin=False)
            + frame(0, packed[half:], masked=True, rsv=4),
        ):
            yield bytes([options, 7, 2, 9]) + stream


def _requests() -> Iterator[bytes]:
    head = REQUEST[:-2]
    # RFC 6455 section 1.2, with another's Host and every field there is.
    yield b"\x07\x0b" + (
        b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n"
    )
    for extra in (
        b"",
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
        b'Sec-WebSocket-Extensions: foo; a="b", permessage-deflate; server_max_window_bits=9\r\n',
        b"Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b, c\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: another\r\n",
        b"X-Folded: one\r\n two\r\n",
        b"X-Long: " + b"y" * 2000 + b"\r\n",
        b"X-Odd\r\n: x\r\n",
        b"Upgrade: h2c\r\n",
    ):
        yield b"\x07\x0b" + head + extra + b"\r\n" + frame(1, b"early", masked=True)
    for old, new in (
        (b"GET", b"POST"),
        (b"GET", b"HEAD"),
        (b"1.1", b"1.0"),
        (b"/path?q=1", b"http://other.example/path"),
        (b"/path?q=1", b"*"),
        (b"/path?q=1", b"/#"),
        (b"Version: 13", b"Version: 8"),
        (b"\r\n", b"\n"),
        (b"Upgrade: websocket\r\n", b""),
        (b": ", b":"),
    ):
        yield b"\x07\x0b" + REQUEST.replace(old, new)
    # TLS where HTTP is expected.
    yield b"\x07\x0b\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


def _responses() -> Iterator[bytes]:
    switch = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: {accept}\r\n"
    )
    deflate = b"Sec-WebSocket-Extensions: permessage-deflate"
    for extra in (
        b"",
        b"Sec-WebSocket-Protocol: a\r\n",
        b"Sec-WebSocket-Protocol: c\r\n",
        deflate + b"\r\n",
        deflate + b"; server_max_window_bits=10; client_max_window_bits=11\r\n",
        deflate + b"; server_no_context_takeover; client_no_context_takeover\r\n",
        deflate + b", permessage-deflate\r\n",
        deflate + b"; x\r\n",
    ):
        for choice in (0, 1, 2):
            yield bytes([choice, 9]) + switch + extra + b"\r\n" + frame(1, b"early", masked=False)
    rejection = b"HTTP/1.1 403 Forbidden\r\n"
    for rest in (
        b"Content-Length: 2\r\n\r\nno",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
        b"\r\nno",
        b"Content-Length: 9000\r\n\r\n" + b"no" * 1500,
    ):
        yield b"\x07\x0b" + rejection + rest
    yield b"\x07\x0bHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + switch + b"\r\n"
    yield b"\x07\x0b" + switch.replace(b"1.1", b"1.0") + b"\r\n"
    yield b"\x07\x0b" + switch.replace(b"{accept}", b"wrong") + b"\r\n"


def _offers() -> Iterator[bytes]:
    """RFC 7692 section 7.1's, and what it forbids."""
    for parameters in (
        "",
        "; client_max_window_bits",
        "; client_max_window_bits=10; server_max_window_bits=10",
        "; client_no_context_takeover; server_no_context_takeover",
        '; server_max_window_bits="12"',
        "; server_max_window_bits=8",
        "; client_max_window_bits=8",
        "; client_max_window_bits=08",
        "; server_max_window_bits",
        "; server_no_context_takeover=1",
        "; client_max_window_bits=10; client_max_window_bits=10",
        "; unknown",
        ";",
        ", permessage-deflate",
    ):
        for options in (0, 1, 2):
            yield bytes([options]) + f"permessage-deflate{parameters}".encode()


def main() -> None:
    for target, inputs in (
        ("codec", [*_rfc_6455(), *_rfc_7692(), *_like_autobahn()]),
        ("request", list(_requests())),
        ("response", list(_responses())),
        ("offer", list(_offers())),
    ):
        directory = corpus(target)
        directory.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            # As libFuzzer names its files.
            (directory / hashlib.sha1(data).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    main()
