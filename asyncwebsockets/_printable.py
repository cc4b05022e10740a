"""What a peer sent, made fit to be shown: nothing in it reaches a terminal as a command."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PrintableFormatter", "hexadecimal", "printable"]

# Bytes of a binary message that are shown.
_SHOWN = 32


def printable(text: str) -> str:
    r"""Return the text with all that is not printable escaped as Python does: ``\x1b``.

    That takes in C0, C1 and DEL, the controls of bidirectional text and others without a
    width, line breaks of every kind, and surrogates. A backslash stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def hexadecimal(data: bytes) -> str:
    """Return the size of binary data and how it begins."""
    shown = data[:_SHOWN].hex(" ") + (" ..." if len(data) > _SHOWN else "")
    return f"binary, {len(data)} bytes: {shown}" if data else "binary, 0 bytes"


class PrintableFormatter(logging.Formatter):
    """Formats records of one printable line, and tracebacks of printable lines behind it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(super().formatMessage(record))

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[Any, ...],
    ) -> str:
        """Return the traceback."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))
