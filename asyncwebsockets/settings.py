"""The limits and options of a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .observation import Observer

__all__ = ["Deflate", "Settings"]


@dataclass(frozen=True)
class Deflate:
    """permessage-deflate with its parameters (RFC 7692 section 7.1).

    A connection's compressor takes about ``2**(window_bits + 2) + 2**(mem_level + 9)`` bytes
    and its decompressor ``2**window_bits``, and 7 KiB each: 252 and 40 KiB with the defaults.
    Where a side's context takeover is off, its memory is held only while a message is under way.

    Attributes:
        server_max_window_bits: 9 to 15, the largest LZ77 window the server may use. zlib
            cannot compress with a window of 8 bits, so 8 is not offered and not accepted.
        client_max_window_bits: 9 to 15, the same for the client. A server that is set to less
            than 15 declines a client that cannot be limited.
        server_no_context_takeover: the server compresses each message by itself.
        client_no_context_takeover: the client compresses each message by itself.
        level: zlib's compression level, -1 to 9.
        mem_level: zlib's memory level, 1 to 9.
        threshold: a whole message of fewer bytes is sent uncompressed.

    Raises:
        ValueError: a parameter is out of its range.
    """

    server_max_window_bits: int = 15
    client_max_window_bits: int = 15
    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    level: int = -1
    mem_level: int = 8
    threshold: int = 64

    def __post_init__(self) -> None:
        for name, low, high in (
            ("server_max_window_bits", 9, 15),
            ("client_max_window_bits", 9, 15),
            ("level", -1, 9),
            ("mem_level", 1, 9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"expected {name} from {low} to {high}, got {value}")
        if self.threshold < 0:
            raise ValueError(f"expected threshold of 0 or more, got {self.threshold}")


@dataclass(frozen=True)
class Settings:
    """The limits and options of a connection and of a server; None switches a limit off.

    Attributes:
        open_timeout: seconds for the opening handshake, from name resolution to 101.
        close_timeout: seconds for the closing handshake and the end of TCP after it.
        ping_interval: seconds between keepalive pings.
        ping_timeout: seconds of silence after a keepalive ping until the peer is dropped.
        max_message_size: bytes of a message, joined and inflated (not of one received as a
            stream).
        max_read_ahead: bytes of events kept for a handler that does not receive them, each
            counted as 128 at least; beyond that the peer is made to wait.
        max_handshake_size: bytes of a handshake's request or response, and of the body of a
            rejection.
        compression: permessage-deflate, off by default.
        max_redirects: redirects a client follows one after the other; 0 follows none.
        max_connections: connections of a server, those in their handshake included; 503
            beyond it.
        max_handshakes: handshakes of a server at a time; 503 beyond it.
        drain_timeout: seconds a server that closes gives its handlers to end.
        observer: a function that is called with each opening handshake, and returns who is to be
            told what becomes of it: see :class:`Observation`.

    Raises:
        ValueError: a limit is negative, or zero where that would allow nothing at all.
    """

    open_timeout: float | None = 10
    close_timeout: float | None = 10
    ping_interval: float | None = 20
    ping_timeout: float | None = 20
    max_message_size: int | None = 16 * 2**20
    max_read_ahead: int | None = 256 * 2**10
    max_handshake_size: int | None = 64 * 2**10
    compression: Deflate | None = None
    max_redirects: int | None = 10
    max_connections: int | None = None
    max_handshakes: int | None = 1024
    drain_timeout: float | None = 20
    observer: Observer | None = None

    def __post_init__(self) -> None:
        # Asked so that NaN, with which nothing would ever be due, is not let pass.
        for name in ("close_timeout", "drain_timeout", "max_message_size", "max_redirects"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"expected {name} of 0 or more, or None, got {value}")
        for name in (
            "open_timeout",
            "ping_interval",
            "ping_timeout",
            "max_read_ahead",
            "max_handshake_size",
            "max_connections",
            "max_handshakes",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} above 0, or None, got {value}")
