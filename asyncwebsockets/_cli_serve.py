"""``asyncwebsockets serve``: an echo, a broadcast, or a process for each connection."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import ssl
import subprocess
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from ._broadcast import broadcast
from ._certificates import load_identity
from ._descriptors import decode, records
from ._grammar import is_token
from .errors import ConnectionClosed
from .events import AcceptConnection, Message
from .origin import check_origin, origin_filter
from .server import serve as serve_websockets
from .settings import Deflate, Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Iterator

    from anyio.abc import ByteReceiveStream, Process

    from .events import Request
    from .server import Handler, Server
    from .websocket import Websocket

__all__ = ["serve"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")

# The seconds a process has to end by itself, and then after SIGTERM.
_LAST_WORDS = 2.0

_NOT_STARTED = 1


def serve(options: argparse.Namespace, backend: tuple[str, dict[str, Any]]) -> int:
    """Run the command until a signal ends it; return its exit status."""
    try:
        handler = _handler(options)
        context = _tls(options)
        settings = Settings(
            max_message_size=options.max_size or None,
            max_connections=options.max_connections,
            drain_timeout=options.drain_timeout,
            compression=Deflate() if options.compress else None,
        )
        accept = _Filter(options.origin, options.subprotocol)
    except ValueError as exc:
        logger.error("%s", exc)
        return _NOT_STARTED
    place = f"{options.host}, port {options.port}"
    listen: dict[str, Any] = {"host": options.host, "port": options.port}
    if options.uds is not None:
        place = f"the Unix socket {options.uds}"
        listen = {"uds": options.uds}
    run = partial(
        serve_websockets, handler, **listen, filter=accept, ssl=context, settings=settings
    )
    return anyio.run(
        _until_told, run, handler, place, backend=backend[0], backend_options=backend[1]
    )


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.cert_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_identity(context, options.cert_file, options.key_file)
    return context


def _handler(options: argparse.Namespace) -> Handler:
    match options.what:
        case "echo":
            return _echo
        case "broadcast":
            return _Broadcast()
        case _:
            return _Processes(options)


def _endings() -> Iterator[signal.Signals]:
    yield from (signal.SIGTERM, signal.SIGINT)
    # Commands are in sessions of their own: a terminal that goes would leave them behind. Under
    # nohup it does not matter.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        yield signal.SIGHUP


async def _until_told(run: Any, handler: Handler, place: str) -> int:
    """Serve until a signal, then drain; at a second one, wait no longer."""
    with anyio.open_signal_receiver(*_endings()) as signals:
        async with anyio.create_task_group() as tasks:
            try:
                server: Server = await tasks.start(run)
            except (OSError, ValueError) as exc:
                logger.error("cannot listen on %s: %s", place, exc)
                return _NOT_STARTED
            scheme = "wss" if run.keywords["ssl"] is not None else "ws"
            for address in server.addresses:
                logger.info("listening on %s", _describe(scheme, address))
            told = False

            async def close() -> None:
                await server.close()
                tasks.cancel_scope.cancel()

            async for number in signals:
                logger.info("%s: closing", number.name)
                if told:
                    if isinstance(handler, _Processes):
                        handler.kill()
                    await server.close(grace=0)
                    break
                told = True
                tasks.start_soon(close)
    return 0


def _describe(scheme: str, address: Any) -> str:
    if not isinstance(address, tuple):
        return f"the Unix socket {address}"
    host, port = address
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Filter:
    """Accepts clients that are no browsers and pages of the origins given.

    A page of this server's own there cannot be, so that none is allowed for it: the name that a
    browser has connected to may be one that its owner has pointed here.
    """

    def __init__(self, origins: list[str], subprotocols: list[str]) -> None:
        self._any = "*" in origins
        self._origins = [origin for origin in origins if origin != "*"]
        # It checks them.
        origin_filter(*self._origins)
        for name in subprotocols:
            if not is_token(name):
                raise ValueError(f"expected a token as a subprotocol, got {name!r}")
        self._subprotocols = subprotocols

    async def __call__(self, request: Request) -> object:
        if not self._any and not check_origin(request, self._origins, same_origin=False):
            return False
        if not self._subprotocols:
            return True
        offered = (name for name in self._subprotocols if name in request.subprotocols)
        return AcceptConnection(subprotocol=next(offered, None))


# What is served


async def _echo(websocket: Websocket) -> None:
    async for event in websocket:
        if isinstance(event, Message):
            await websocket.send(event.data)


class _Broadcast:
    """Hands each message to all others. Who falls too far behind is closed with 1008."""

    def __init__(self) -> None:
        self._people: set[Websocket] = set()

    async def __call__(self, websocket: Websocket) -> None:
        self._people.add(websocket)
        try:
            async for event in websocket:
                if isinstance(event, Message):
                    await broadcast(self._people - {websocket}, event.data)
        finally:
            self._people.discard(websocket)


class _Processes:
    """Runs a command for each connection: messages to its input, its output to messages."""

    def __init__(self, options: argparse.Namespace) -> None:
        if shutil.which(options.command[0]) is None:
            raise ValueError(f"expected a command that can be run, got {options.command[0]!r}")
        self._command: list[str] = options.command
        self._separator = b"\0" if options.null else b"\n"
        self._binary: bool = options.binary
        self._limit: int | None = options.max_size or None
        self._running: set[Process] = set()
        self._patience = _LAST_WORDS

    def kill(self) -> None:
        """End all that runs and what it has started, and be patient with none from now on."""
        self._patience = 0
        for process in self._running:
            if process.returncode is None:
                _signal(process, signal.SIGKILL)

    async def __call__(self, websocket: Websocket) -> None:
        try:
            process = await anyio.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None,
                env={**os.environ, **_about(websocket)},
                # A terminal's Ctrl-C is for the server, and what the command starts ends with it.
                start_new_session=True,
            )
        except OSError as exc:
            logger.error("cannot run %s: %s", self._command[0], exc)
            await websocket.close(1011, "the command cannot be run")
            return
        self._running.add(process)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._feed, websocket, process, tasks.cancel_scope)
                try:
                    await self._forward(websocket, process)
                except ValueError as exc:
                    logger.error("%s has said too much at once: %s", self._command[0], exc)
                    end = 1011, "the command has said too much at once"
                else:
                    end = _end(await process.wait())
                await websocket.close(*end)
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._finish(process)
            self._running.discard(process)

    async def _feed(self, websocket: Websocket, process: Process, scope: anyio.CancelScope) -> None:
        assert process.stdin is not None
        reads = True
        with suppress(ConnectionClosed):
            async for event in websocket:
                if reads and isinstance(event, Message):
                    data = event.data
                    record = data.encode() if isinstance(data, str) else bytes(data)
                    try:
                        await process.stdin.send(record + self._separator)
                    except anyio.BrokenResourceError:
                        # It may have something to say still.
                        reads = False
        scope.cancel()

    async def _forward(self, websocket: Websocket, process: Process) -> None:
        assert process.stdout is not None
        async for record in records(_chunks(process.stdout), self._separator, self._limit):
            await websocket.send(record if self._binary else decode(record))

    async def _finish(self, process: Process) -> None:
        """Close its input, then ask it to end, then end it."""
        assert process.stdin is not None
        with suppress(anyio.BrokenResourceError, OSError):
            await process.stdin.aclose()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with anyio.move_on_after(self._patience):
                await process.wait()
                break
            _signal(process, number)
        await process.aclose()


def _signal(process: Process, number: signal.Signals) -> None:
    """Send a signal to a command and what it has started."""
    # It may have ended in this moment.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def _chunks(stream: ByteReceiveStream) -> AsyncIterator[bytes]:
    async for chunk in stream:
        yield chunk


def _about(websocket: Websocket) -> dict[str, str]:
    """Return what a command is told of its connection, in its environment.

    No name in it is of the client's choice, and no header field is in it.
    """
    path, _, query = websocket.request.target.partition("?")
    address = websocket.remote_address
    return {
        "WEBSOCKET_PATH": path,
        "WEBSOCKET_QUERY": query,
        "WEBSOCKET_SUBPROTOCOL": websocket.subprotocol or "",
        "WEBSOCKET_CLIENT": f"{address[0]} {address[1]}" if isinstance(address, tuple) else "",
    }


def _end(status: int) -> tuple[int, str]:
    if status == 0:
        return 1000, ""
    if status < 0:
        return 1011, f"the command was ended by signal {-status}"
    return 1011, f"the command ended with status {status}"
