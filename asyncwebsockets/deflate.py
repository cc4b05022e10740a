"""permessage-deflate: its negotiation, compression, and inflation in bounded slices (RFC 7692)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from wsproto.extensions import Extension
from wsproto.extensions import PerMessageDeflate as _WsprotoDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from ._grammar import parse_extension
from .settings import Deflate

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["Inflater", "PerMessageDeflate"]

# The end of an empty stored block, left out at a message's end (RFC 7692 section 7.2.1).
_TAIL = b"\x00\x00\xff\xff"

_FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
_WINDOWS = ("server_max_window_bits", "client_max_window_bits")


class _Unacceptable(ValueError):
    """A set of parameters that cannot be agreed on."""


def _parse(text: str) -> dict[str, int | None]:
    """Parse and validate parameters; unknown, repeated and malformed ones are an error."""
    name, items = parse_extension(text)
    if name.lower() != PerMessageDeflate.name:
        raise _Unacceptable(f"expected {PerMessageDeflate.name}, got {name}")
    parameters: dict[str, int | None] = {}
    for key, value in items:
        if key in parameters:
            raise _Unacceptable(f"{key} is given twice")
        if key in _FLAGS:
            if value is not None:
                raise _Unacceptable(f"expected {key} without a value, got {value!r}")
            parameters[key] = None
        elif key in _WINDOWS:
            if value is None:
                parameters[key] = None
            # No leading zero, and no digits but ASCII's.
            elif value in {"8", "9", "10", "11", "12", "13", "14", "15"}:
                parameters[key] = int(value)
            else:
                raise _Unacceptable(f"expected {key} from 8 to 15, got {value!r}")
        else:
            raise _Unacceptable(f"unknown parameter {key}")
    return parameters


class PerMessageDeflate(Extension):
    """One connection's permessage-deflate, in wsproto's interface for extensions.

    wsproto's own class inflates without a bound, so this one leaves the payload of received
    frames as it is: :attr:`compressed` says what it is, and an :class:`Inflater` inflates it.

    Args:
        options: what to offer or to accept.
    """

    name = "permessage-deflate"

    def __init__(self, options: Deflate) -> None:
        self.options = options
        #: Whether the message of the last data frame's header is compressed.
        self.compressed: bool = False
        self._enabled = False
        self._server_bits = options.server_max_window_bits
        self._client_bits = options.client_max_window_bits
        self._server_alone = options.server_no_context_takeover
        self._client_alone = options.client_no_context_takeover
        self._compressor: zlib._Compress | None = None
        self._compressing = False

    @classmethod
    def replacing(cls, extensions: Sequence[Extension]) -> list[Extension]:
        """Return the extensions with wsproto's permessage-deflate replaced by this one."""
        return [
            cls(
                Deflate(
                    server_max_window_bits=extension.server_max_window_bits,
                    client_max_window_bits=extension.client_max_window_bits,
                    server_no_context_takeover=extension.server_no_context_takeover,
                    client_no_context_takeover=extension.client_no_context_takeover,
                )
            )
            if isinstance(extension, _WsprotoDeflate)
            else extension
            for extension in extensions
        ]

    def enabled(self) -> bool:
        """Whether both sides have agreed on it."""
        return self._enabled

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._describe()}>"

    def _describe(self) -> str:
        flags = [
            name
            for name, on in zip(_FLAGS, (self._server_alone, self._client_alone), strict=True)
            if on
        ]
        windows = [
            f"{name}={bits}"
            for name, bits in zip(_WINDOWS, (self._server_bits, self._client_bits), strict=True)
        ]
        return "; ".join([*flags, *windows])

    # Negotiation

    def offer(self) -> str:
        """Return the parameters a client offers (RFC 7692 section 7.1)."""
        parameters = []
        if self._server_alone:
            parameters.append("server_no_context_takeover")
        if self._client_alone:
            parameters.append("client_no_context_takeover")
        if self._server_bits < 15:
            parameters.append(f"server_max_window_bits={self._server_bits}")
        # Without a value it tells the server that it may choose.
        if self._client_bits < 15:
            parameters.append(f"client_max_window_bits={self._client_bits}")
        else:
            parameters.append("client_max_window_bits")
        return "; ".join(parameters)

    def accept(self, offer: str) -> str | None:
        """Return a server's answer to an offer, or None if it declines it."""
        try:
            offered = _parse(offer)
        except ValueError:
            return None
        server_bits = offered.get("server_max_window_bits", 15)
        if server_bits is None or server_bits < 9:
            return None
        if self._client_bits < 15 and "client_max_window_bits" not in offered:
            return None
        answer = []
        self._server_bits = min(self._server_bits, server_bits)
        if self._server_alone or "server_no_context_takeover" in offered:
            self._server_alone = True
            answer.append("server_no_context_takeover")
        if self._client_alone or "client_no_context_takeover" in offered:
            self._client_alone = True
            answer.append("client_no_context_takeover")
        if "server_max_window_bits" in offered or self._server_bits < 15:
            answer.append(f"server_max_window_bits={self._server_bits}")
        if "client_max_window_bits" in offered:
            self._client_bits = min(self._client_bits, offered["client_max_window_bits"] or 15)
            answer.append(f"client_max_window_bits={self._client_bits}")
        self._enabled = True
        return "; ".join(answer)

    def finalize(self, offer: str) -> None:
        """Take up the server's answer on the client's side.

        Raises:
            ValueError: the answer does not fit what was offered (RFC 7692 section 7.1).
        """
        answer = _parse(offer)
        if self._server_alone and "server_no_context_takeover" not in answer:
            raise _Unacceptable("the server does not confirm server_no_context_takeover")
        self._server_alone = "server_no_context_takeover" in answer
        self._client_alone |= "client_no_context_takeover" in answer
        for name in _WINDOWS:
            if name in answer and answer[name] is None:
                raise _Unacceptable(f"expected a value for {name} in the server's answer")
        server_bits = answer.get("server_max_window_bits") or 15
        if server_bits > self._server_bits:
            raise _Unacceptable(
                f"expected server_max_window_bits of at most {self._server_bits}, got {server_bits}"
            )
        client_bits = answer.get("client_max_window_bits") or self._client_bits
        if client_bits > self._client_bits:
            raise _Unacceptable(
                f"expected client_max_window_bits of at most {self._client_bits}, got {client_bits}"
            )
        self._server_bits, self._client_bits = server_bits, client_bits
        self._enabled = True

    @property
    def kin(self) -> Hashable | None:
        """What two servers' compressors have in common that give the same for the same message.

        None where the context is kept.
        """
        options = self.options
        if not self._server_alone:
            return None
        return self._server_bits, options.level, options.mem_level, options.threshold

    # Frames

    def inflater(self, *, client: bool) -> Inflater:
        """Return the inflater of what the other side sends."""
        if client:
            return Inflater(self._server_bits, keep_context=not self._server_alone)
        return Inflater(self._client_bits, keep_context=not self._client_alone)

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,
    ) -> CloseReason | RsvBits:
        """Check RSV1 (RFC 7692 section 6.1) and note whether the message is compressed."""
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            self.compressed = rsv.rsv1
        elif rsv.rsv1:
            return CloseReason.PROTOCOL_ERROR
        return RsvBits(True, False, False)

    def frame_outbound(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        data: bytes,
        fin: bool,
    ) -> tuple[RsvBits, bytes]:
        """Compress a frame that is to be sent."""
        if opcode.iscontrol():
            return rsv, data
        first = opcode is not Opcode.CONTINUATION
        compressed = self.compress(data, first, fin, proto.client)
        if compressed is None:
            return rsv, data
        return RsvBits(first, rsv.rsv2, rsv.rsv3), compressed

    def compress(self, data: bytes, first: bool, final: bool, client: bool) -> bytes | None:
        """Return a data frame's payload compressed, None if its message goes out as it is.

        The first frame of a compressed message has RSV1 set (RFC 7692 section 7.2.1).
        """
        bits = self._client_bits if client else self._server_bits
        if first:
            # zlib has no window of 8 bits; an uncompressed message is always allowed.
            self._compressing = bits > 8 and not (final and len(data) < self.options.threshold)
        if not self._compressing:
            return None
        compressor = self._compressor
        if compressor is None:
            options = self.options
            compressor = self._compressor = zlib.compressobj(
                options.level, zlib.DEFLATED, -bits, options.mem_level
            )
        # Each fragment is flushed, so that the peer can inflate it as it comes.
        data = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        if final:
            # Nothing comes from a second flush in a row: then the first byte of an empty
            # block stands for it (RFC 7692 section 7.2.3.6).
            data = data[:-4] or b"\x00"
            if self._client_alone if client else self._server_alone:
                self._compressor = None
        return data


class Inflater:
    """Inflates messages piece by piece (RFC 7692 section 7.2.2).

    Args:
        window_bits: the peer's LZ77 window, 8 to 15.
        keep_context: whether the window is kept from message to message.
    """

    def __init__(self, window_bits: int, *, keep_context: bool) -> None:
        self._bits = -window_bits
        self._keep_context = keep_context
        self._inflate: zlib._Decompress | None = None
        self._input = b""
        self._last = False
        #: Whether there is more to be read of what was fed.
        self.pending: bool = False
        # Whether a block marked as the final one was the last of the message so far, but for what
        # has come behind it: that begins another if it is more than a byte, and with a byte it is
        # only what completes an empty block (RFC 7692 section 7.2.3.4).
        self._over = False
        self._behind = b""

    def feed(self, data: bytes, last: bool) -> None:
        """Take compressed bytes; `last` says that they end the message."""
        if self._over:
            data = self._behind + data
            self._over = len(data) <= 1
            if self._over:
                self._end(data, last)
                return
            self._behind = b""
        self.pending = True
        self._input = data + _TAIL if last else data
        self._last = last

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes of what was fed, inflated.

        Raises:
            zlib.error: the input is not valid DEFLATE data.
        """
        inflate = self._inflate
        if inflate is None:
            inflate = self._inflate = zlib.decompressobj(self._bits)
        data = inflate.decompress(self._input, size)
        self._input = inflate.unconsumed_tail
        if inflate.eof:
            # The stream has ended, not always the message; what follows starts anew.
            self._inflate = None
            rest = inflate.unused_data
            if len(rest) <= (len(_TAIL) + 1 if self._last else 1):
                self._end(rest, self._last)
            else:
                self._input = rest
        else:
            # A full slice may leave output inside zlib though all input was taken.
            self.pending = bool(self._input) or len(data) == size
        if self._last and not self.pending and not self._keep_context:
            self._inflate = None
        return data

    def _end(self, behind: bytes, last: bool) -> None:
        """Note that the message is over, unless more comes that `last` has not ruled out."""
        self._over = not last
        self._behind = b"" if last else behind
        self._input = b""
        self.pending = False
