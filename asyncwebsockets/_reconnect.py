"""Connecting again, and again."""

from __future__ import annotations

import logging
import random
import ssl as _ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeAlias

import anyio
from anyio.lowlevel import current_token
from wsproto.connection import ConnectionState

from ._dial import Dialer
from ._scope import Background
from .errors import (
    ConnectionClosed,
    ConnectionClosedOK,
    InvalidHandshake,
    ProxyError,
    Rejected,
    is_passing,
)
from .events import find_header
from .settings import Settings
from .websocket import Websocket

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import TracebackType

    from ._cookies import CookiesLike
    from ._proxy import ProxyLike
    from ._supervisor import Supervisor
    from .channel import Channel
    from .events import RawHeaders
    from .handshake import HeadersLike

__all__ = ["Decide", "Reconnecting", "reconnect"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")

#: Gets what went wrong and the seconds to wait before the next attempt, None for none; returns
#: the same.
Decide: TypeAlias = Callable[[Exception, "float | None"], Awaitable["float | None"]]

# A server may ask for as many seconds at most.
_LONGEST_RETRY_AFTER = 3600.0


def reconnect(
    url: str,
    headers: HeadersLike | None = None,
    subprotocols: Sequence[str] | None = None,
    *,
    ssl: _ssl.SSLContext | bool | None = None,
    settings: Settings | None = None,
    proxy: ProxyLike = True,
    cookies: CookiesLike | None = None,
    uds: str | os.PathLike[str] | None = None,
    initial_delay: float = 1,
    max_delay: float = 60,
    decide: Decide | None = None,
) -> Reconnecting:
    """Connect to a URL whenever the last connection has ended.

    ::

        async with reconnect("wss://example.com/feed") as connections:
            async for websocket in connections:
                with suppress(ConnectionClosed):
                    async for text in websocket.iter_text():
                        print(text)

    Each turn of the loop has a connection of its own, which is closed with 1000 when the turn
    ends and it is still open. What the body raises leaves the loop as it is: suppress
    :exc:`ConnectionClosed` to go on with the next connection. Leaving the ``async with`` closes
    the last connection, however it is left, as :func:`open_websocket` does.

    Without the ``async with``, ``async for websocket in reconnect(...)`` works as well, with
    less: a connection has no task in the background (see :func:`create_websocket`), and one that
    is open when ``break``, ``return`` or an exception leaves the loop is cut, without a closing
    handshake, when the iterator is let go of. On CPython that is at once.

    Before each attempt but the first it waits a random time between 0 and `initial_delay`,
    twice that after another failure in a row, and so on up to `max_delay` ("full jitter"). A
    connection counts as a failure unless it lasted for `max_delay` or was closed with 1000. To
    that, ``Retry-After`` of a rejection is added, up to an hour of it.

    Tried again: failures of name resolution and TCP, lost connections and those that were closed
    with any code, time-outs, and rejections with 408, 425, 429 or 5xx. Final, and raised: other
    rejections, certificates that cannot be verified (:exc:`ssl.SSLCertVerificationError`),
    answers that are no valid handshake, and all else, such as a ValueError.

    Args:
        url: as in :func:`open_websocket`.
        headers: as in :func:`open_websocket`. They are read anew for each attempt.
        subprotocols: as in :func:`open_websocket`.
        ssl: as in :func:`open_websocket`.
        settings: as in :func:`open_websocket`.
        proxy: as in :func:`open_websocket`.
        cookies: as in :func:`open_websocket`.
        uds: as in :func:`open_websocket`.
        initial_delay: seconds the first wait may be long.
        max_delay: seconds any wait may be long.
        decide: ``await decide(error, delay)`` is asked each time with what went wrong and what
            is about to happen: the seconds to wait, or None if the error is final. It returns
            the same, or otherwise. For a connection that has ended `error` is a
            :exc:`ConnectionClosedError`, or a :exc:`ConnectionClosedOK` after a closing
            handshake, where None ends the loop without an exception.

    Returns:
        An async iterator of :class:`Websocket` and, for the time in which they are used, an
        async context manager that gives itself.

    Raises:
        ValueError: a delay is negative, or `max_delay` is less than `initial_delay`.
    """
    if not 0 <= initial_delay <= max_delay:
        raise ValueError(
            "expected delays of 0 or more, max_delay not less than initial_delay, "
            f"got initial_delay={initial_delay} and max_delay={max_delay}"
        )
    if isinstance(headers, Iterator):
        headers = list(headers)
    dialer = Dialer(url, headers, subprotocols, ssl, settings or Settings(), proxy, cookies, uds)
    return Reconnecting(dialer, initial_delay, max_delay, decide)


class Reconnecting:
    """The connections of :func:`reconnect`, one after the other."""

    # It is an object, and no generator: nothing is told of a `break`, and a cancel scope that
    # was entered in a generator would stay entered.

    def __init__(
        self, dialer: Dialer, initial_delay: float, max_delay: float, decide: Decide | None
    ) -> None:
        self._dialer = dialer
        self._initial_delay = initial_delay
        self._max_delay = max_delay
        self._decide = decide
        self._failures = 0
        self._background: Background | None = None
        self._supervisor: Supervisor | None = None
        # The connection of this turn, and what is below it.
        self._websocket: Websocket | None = None
        self._channel: Channel | None = None
        self._opened_at = 0.0
        self._token: object = None

    def __aiter__(self) -> Reconnecting:
        return self

    async def __anext__(self) -> Websocket:
        if self._background is not None and self._supervisor is None:
            raise anyio.ClosedResourceError
        if self._websocket is not None:
            end = await self._close(self._websocket)
            if not await self._wait(end):
                if isinstance(end, ConnectionClosedOK):
                    raise StopAsyncIteration
                raise end
        while True:
            try:
                opened = await self._dialer.connect()
            except Exception as exc:
                if not await self._wait(exc):
                    raise
            else:
                self._channel = opened.channel(self._supervisor)
                self._websocket = Websocket(self._channel)
                self._opened_at = anyio.current_time()
                self._token = current_token()
                return self._websocket

    async def _close(self, websocket: Websocket) -> ConnectionClosed:
        """Close the connection if it is open; return how it ended."""
        assert self._channel is not None
        lasted = anyio.current_time() - self._opened_at
        await websocket.close(1000, "")
        self._websocket = None
        code, failure = self._channel.close_code, self._channel.failure
        assert code is not None
        if lasted >= self._max_delay or (code == 1000 and failure is None):
            self._failures = 0
        return failure or ConnectionClosedOK(code, self._channel.close_reason or "")

    async def _wait(self, error: Exception) -> bool:
        """Wait until it is time for the next attempt; whether there is to be one."""
        self._failures += 1
        delay: float | None = None
        if _is_passing(error):
            # Beyond that exponent, whatever the delays are, it is the longest.
            longest = self._initial_delay * 2.0 ** min(self._failures - 1, 1000)
            delay = _retry_after(error) + random.uniform(0, min(longest, self._max_delay))
        if self._decide is not None:
            delay = await self._decide(error, delay)
        if delay is None:
            return False
        logger.info("connecting again in %.3g s: %s", delay, error)
        await anyio.sleep(delay)
        return True

    async def __aenter__(self) -> Reconnecting:
        if self._background is not None:
            raise RuntimeError("these connections' scope was entered before")
        self._background = Background()
        self._supervisor = await self._background.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._background is not None
        websocket, self._websocket = self._websocket, None
        self._supervisor = None
        try:
            if websocket is not None:
                await websocket.__aexit__(exc_type, exc, traceback)
        finally:
            await self._background.stop()

    def __del__(self) -> None:
        # Nothing can be awaited here, and on a socket nothing needs to be.
        websocket = self._websocket
        if websocket is None or websocket.state is ConnectionState.CLOSED:
            return
        try:
            here = current_token() == self._token
        except RuntimeError:
            # No event loop runs here; the socket closes itself.
            return
        if here:
            cutting = websocket.abort().__await__()
            next(cutting, None)
            cutting.close()


def _is_passing(error: Exception) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, ConnectionClosed):
        return True
    if isinstance(error, Rejected):
        return is_passing(error.status)
    if isinstance(error, ProxyError):
        return not error.permanent
    if isinstance(error, (InvalidHandshake, _ssl.SSLCertVerificationError)):
        return False
    # HandshakeError is one, and so is what says that a name, a host or a port is not there.
    return isinstance(error, OSError)


def _retry_after(error: Exception) -> float:
    """Return for how many seconds a rejection asks (RFC 9110 section 10.2.3)."""
    headers: RawHeaders = getattr(error, "headers", [])
    value = find_header(headers, "Retry-After")
    if value is None:
        return 0
    try:
        seconds = float(value) if value.isdigit() else _until(value)
    except (ValueError, OverflowError):
        return 0
    return min(max(seconds, 0), _LONGEST_RETRY_AFTER)


def _until(date: str) -> float:
    """Return the seconds until a date of HTTP.

    Raises:
        ValueError, OverflowError: it is none.
    """
    return parsedate_to_datetime(date).timestamp() - time.time()
