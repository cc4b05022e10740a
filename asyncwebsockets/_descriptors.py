"""Standard input and output, and the pipes of a process, without a thread that may hang in them."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

__all__ = ["decode", "open_missing", "read_from", "records", "write_to"]

_READ = 65_536

# What a pipe that is ready for writing takes without blocking (POSIX, PIPE_BUF).
_WRITE = select.PIPE_BUF


def open_missing() -> None:
    """Have nothing to read and nobody who reads where a shell has closed 0, 1 or 2 (``<&-``).

    Otherwise the next socket is opened there, and what is meant for standard output goes to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # It is the lowest that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def _may_wait(descriptor: int) -> bool:
    """Whether a read or write may have to wait for somebody; files never do."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


async def read_from(descriptor: int) -> AsyncIterator[bytes]:
    """Iterate over what can be read, as it comes, until the end."""
    waits = _may_wait(descriptor)
    while True:
        await (anyio.wait_readable(descriptor) if waits else checkpoint())
        try:
            data = os.read(descriptor, _READ)
        except BlockingIOError:
            # Whoever shares the pipe has set it so, and was faster.
            continue
        if not data:
            return
        yield data


async def write_to(descriptor: int, data: bytes) -> None:
    """Write all of it; where that takes waiting, others run.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    waits = _may_wait(descriptor)
    rest = memoryview(data)
    while rest:
        # Mostly there is room, and asking costs a tenth of waiting.
        if not select.select([], [descriptor], [], 0)[1]:
            await (anyio.wait_writable(descriptor) if waits else checkpoint())
        try:
            rest = rest[os.write(descriptor, rest[:_WRITE]) :]
        except BlockingIOError:
            continue


async def records(
    chunks: AsyncIterable[bytes], separator: bytes, limit: int | None
) -> AsyncIterator[bytes]:
    """Cut what is read at a separator of one byte; what is left at the end is one more.

    Raises:
        ValueError: there is none within `limit` bytes.
    """
    rest = bytearray()
    async for chunk in chunks:
        *ended, begun = chunk.split(separator)
        for piece in ended:
            rest += piece
            _check(len(rest), limit)
            yield bytes(rest)
            rest.clear()
        rest += begun
        _check(len(rest), limit)
    if rest:
        yield bytes(rest)


def _check(size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise ValueError(f"expected a message of at most {limit} bytes, got {size} or more")


def decode(record: bytes) -> str | bytes:
    """Return what a record is sent as: text, or binary where it is not UTF-8."""
    try:
        return record.decode()
    except UnicodeDecodeError:
        return record
