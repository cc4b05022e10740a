"""Frames and handshakes written by hand, independent of the code under test."""

from __future__ import annotations

import base64
import hashlib
import struct

KEY = base64.b64encode(b"0123456789abcdef").decode()

REQUEST = (
    "GET /path?q=1 HTTP/1.1\r\n"
    "Host: example.com\r\n"
    "Upgrade: websocket\r\n"
    "Connection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\n"
    "Sec-WebSocket-Version: 13\r\n"
    "\r\n"
).encode()


def accept_for(key: str) -> str:
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    return base64.b64encode(digest).decode()


def response_for(request: bytes, *extra: str) -> bytes:
    """Return the 101 for a client's request."""
    lines = request.decode().split("\r\n")
    key = next(line.split(": ")[1] for line in lines if line.startswith("Sec-WebSocket-Key: "))
    fields = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_for(key)}",
        *extra,
    ]
    return "\r\n".join([*fields, "", ""]).encode()


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    masked: bool,
    fin: bool = True,
    rsv: int = 0,
    length: bytes | None = None,
) -> bytes:
    """Build a frame (RFC 6455 section 5.2); `length` overrides the bytes of the length."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if length is None:
        size = len(payload)
        if size < 126:
            length = bytes([size])
        elif size < 65_536:
            length = b"\x7e" + struct.pack("!H", size)
        else:
            length = b"\x7f" + struct.pack("!Q", size)
    if not masked:
        return head + length + payload
    mask = b"\x12\x34\x56\x78"
    return head + bytes([length[0] | 0x80]) + length[1:] + mask + xor(payload, mask)


def xor(payload: bytes, mask: bytes) -> bytes:
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return number.to_bytes(len(payload), "big")


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack("!H", code) + reason.encode()


def parse_frame(data: bytes) -> tuple[int, bytes, bytes]:
    """Return a frame's first byte, its unmasked payload, and what is behind it."""
    size = data[1] & 0x7F
    position = 2
    if size == 126:
        (size,) = struct.unpack("!H", data[2:4])
        position = 4
    elif size == 127:
        (size,) = struct.unpack("!Q", data[2:10])
        position = 10
    mask = b"\0\0\0\0"
    if data[1] & 0x80:
        mask = data[position : position + 4]
        position += 4
    end = position + size
    if len(data) < end:
        raise IndexError("not a whole frame")
    return data[0], xor(data[position:end], mask), data[end:]
