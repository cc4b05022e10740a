"""A message for many connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .codec import size_of
from .deflate import PerMessageDeflate

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from wsproto.extensions import Extension

    from .codec import Codec

__all__ = ["Shared", "kin_of"]


def kin_of(role: Literal["client", "server"], extensions: Sequence[Extension]) -> Hashable | None:
    """Return what connections have in common whose frames are alike.

    None if a frame is for one connection only: a client's has a mask of its own (RFC 6455 section
    5.3), and a compressor that keeps its context refers to messages before (RFC 7692 section
    7.2.3).
    """
    match role, tuple(extensions):
        case "server", ():
            return ()
        case "server", (PerMessageDeflate() as deflate,):
            return deflate.kin
    return None


class Shared:
    """A message that is encoded once for all connections whose frames are alike.

    Args:
        data: text or bytes.
    """

    def __init__(self, data: str | bytes) -> None:
        self._data = data
        #: Its bytes in UTF-8, without a header and not compressed.
        self.size: int = size_of(data)
        self._frames: dict[Hashable, bytes] = {}

    def frame(self, codec: Codec, kin: Hashable | None) -> bytes:
        """Return its frame for a connection, which is to be written next.

        What may yet be left out is not asked for its frame: neither the compressor nor the
        counts of the connection are to have seen it.

        Raises:
            UnicodeEncodeError: text that UTF-8 cannot express (a lone surrogate).
        """
        if kin is None:
            return codec.encode_message(self._data, True)
        frame = self._frames.get(kin)
        if frame is not None:
            return codec.repeat(frame)
        frame = self._frames[kin] = codec.encode_message(self._data, True)
        return frame
