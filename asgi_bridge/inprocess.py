"""Connections to an ASGI application in the same process, without a socket."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import anyio
from anyio.streams.stapled import StapledObjectStream

from asyncwebsockets import (
    HandshakeError,
    Settings,
    open_websocket_client,
    open_websocket_server,
)

from .host import hosted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from asyncwebsockets import Request, Websocket
    from asyncwebsockets.events import AcceptConnection, Reject
    from asyncwebsockets.handshake import HeadersLike

    from .host import Host
    from .lifespan import Application

__all__ = ["MemoryConnection", "open_websocket_app"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")


@asynccontextmanager
async def open_websocket_app(
    app: Application,
    path: str,
    headers: HeadersLike | None = None,
    subprotocols: Sequence[str] | None = None,
    *,
    root_path: str = "",
    lifespan: Literal["auto", "on", "off"] = "auto",
    raise_app_exceptions: bool = True,
    settings: Settings | None = None,
) -> AsyncGenerator[Websocket, None]:
    """Open a connection to an ASGI application in this process, for the length of a block.

    ``async with open_websocket_app(app, "/chat") as websocket: ...``

    Between the two are a client and a server as on TCP, over streams in memory, so handshake,
    close codes and limits are those of :func:`serve_app`. The application's lifespan is that of
    the block, and the application has ``drain_timeout`` to end after it.

    Args:
        app: an ASGI 3 application.
        path: the request target, with its query.
        headers: additional header fields, as in :func:`asyncwebsockets.open_websocket`.
        subprotocols: to offer, in order of preference.
        root_path: as in :func:`serve_app`.
        lifespan: as in :func:`serve_app`.
        raise_app_exceptions: raise what the application raised when the block is left, rather
            than only close with 1011 or answer 500. Where the block failed before the
            application did, its own exception comes out, and the application's is logged.
        settings: limits and options of both sides.

    Raises:
        Rejected: the application rejected the connection, with its denial response if it sent
            one.
        LifespanFailed: the application says that its startup or shutdown has failed.
        Exception: the application's own.
    """
    settings = settings or Settings()
    served: MemoryConnection | None = None
    # Whether it is the block that has failed, and not the connection or the application.
    blocks_own = False
    try:
        async with hosted(app, root_path=root_path, lifespan=lifespan) as hosting:
            served = MemoryConnection(hosting, settings)
            if raise_app_exceptions:
                hosting.on_error = served.failed
            hosting.tasks.start_soon(served.run)
            try:
                async with open_websocket_client(
                    served.near, "localhost", path, headers, subprotocols, settings=settings
                ) as websocket:
                    try:
                        yield websocket
                    except Exception as exc:
                        blocks_own = served.error is None and not websocket.is_end(exc)
                        raise
            finally:
                with anyio.move_on_after(settings.drain_timeout) as drain:
                    await served.ended.wait()
                    await hosting.wait_idle()
                if drain.cancelled_caught:
                    # Else a test would only be slow, and nobody knew why.
                    logger.warning(
                        "the application did not end within drain_timeout=%g s of its "
                        "connection's end: it is cancelled",
                        settings.drain_timeout,
                    )
    except Exception as exc:
        if served is None or served.error is None or not raise_app_exceptions:
            raise
        if blocks_own:
            logger.error("the application failed as well", exc_info=served.error)
            raise
        raise served.error from exc
    if served.error is not None and raise_app_exceptions:
        raise served.error


class MemoryConnection:
    """The server's side of one connection in memory.

    Args:
        host: of the application.
        settings: limits and options.
    """

    def __init__(self, host: Host, settings: Settings) -> None:
        self._host = host
        self._settings = settings
        self._request: Request | None = None
        to_server, from_client = anyio.create_memory_object_stream[bytes](1)
        to_client, from_server = anyio.create_memory_object_stream[bytes](1)
        #: The client's end.
        self.near: StapledObjectStream[bytes] = StapledObjectStream(to_server, from_server)
        self._far = StapledObjectStream(to_client, from_client)
        self._halves = (to_client, from_client)
        self.ended: anyio.Event = anyio.Event()
        #: What the application raised.
        self.error: Exception | None = None

    async def run(self) -> None:
        """Serve the connection to its end."""
        try:
            async with open_websocket_server(
                self._far, self._filter, settings=self._settings
            ) as websocket:
                await self._host.handler(websocket)
        except HandshakeError as exc:
            self._host.on_handshake_error(self._request, exc)
        except Exception as exc:
            self._host.on_handshake_error(self._request, exc)
            self.failed(exc)
        finally:
            # An abort reaches only the first half of a stapled stream.
            for half in self._halves:
                half.close()
            self.ended.set()

    def failed(self, error: Exception) -> None:
        """Note what the application raised; it may be told again on its way."""
        self.error = self.error or error

    async def _filter(self, request: Request) -> AcceptConnection | Reject:
        self._request = request
        return await self._host.filter(request)
