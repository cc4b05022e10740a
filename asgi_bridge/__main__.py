"""The command ``python -m asgi_bridge module:attribute``, or ``asgi-bridge``."""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from asyncwebsockets import Settings

from .host import check_root_path, serve_app
from .lifespan import LifespanFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence

    from anyio.abc import Process, TaskStatus

    from asyncwebsockets import Server

    from .lifespan import Application

__all__ = ["main"]

logger: logging.Logger = logging.getLogger("asgi_bridge")

#: Exit statuses.
_FAILED = 1
_NOT_STARTED = 3
_INTERRUPTED = 130

_BACKLOG = 65_535

# What brings a package along, where it is not called the same.
_EXTRAS = {"watchfiles": "reload"}

# The options that each of several processes gets as they are.
_FORWARDED = (
    "loop",
    "root_path",
    "lifespan",
    "drain_timeout",
    "log_level",
    "ssl_certfile",
    "ssl_keyfile",
)

# The seconds before a process that has died is replaced: at once, then longer each time, until
# one has lived long enough to say that it works.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_LONG_LIFE = 60.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asgi-bridge",
        description="Serve the WebSockets of an ASGI application. Plain HTTP gets status 426.",
    )
    parser.add_argument("app", metavar="module:attribute", help="the ASGI application")
    where = parser.add_argument_group("where to listen")
    where.add_argument("--host", default="127.0.0.1", help="%(default)s by default")
    where.add_argument(
        "--port", type=int, default=8000, help="%(default)s by default; 0 for any that is free"
    )
    where.add_argument("--uds", metavar="PATH", help="a Unix socket, in place of host and port")
    where.add_argument(
        "--fd",
        type=int,
        action="append",
        metavar="NUMBER",
        help="a listening socket that was inherited; may be given several times",
    )
    parser.add_argument(
        "--loop",
        choices=["asyncio", "uvloop", "trio"],
        default="asyncio",
        help="the event loop; %(default)s by default",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes; one that dies is replaced"
    )
    parser.add_argument("--root-path", default="", help="what a proxy has taken off the path")
    parser.add_argument("--ssl-certfile", help="the certificate chain (PEM), for wss")
    parser.add_argument("--ssl-keyfile", help="its private key (PEM), if that is another file")
    parser.add_argument("--lifespan", choices=["auto", "on", "off"], default="auto")
    parser.add_argument(
        "--drain-timeout",
        type=float,
        default=Settings().drain_timeout,
        metavar="SECONDS",
        help="what the application has to end when it is to close; %(default)s by default",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="start anew when a Python file below this directory changes (needs watchfiles)",
    )
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error", "critical"],
        default="info",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"expected at least one worker, got {options.workers}")
    if not 0 <= options.port <= 65_535:
        parser.error(f"expected a port from 0 to 65535, got {options.port}")
    if options.uds is not None and options.fd is not None:
        parser.error("expected either --uds or --fd, got both")
    if options.ssl_keyfile is not None and options.ssl_certfile is None:
        parser.error("expected --ssl-certfile with --ssl-keyfile")
    if options.reload and options.workers > 1:
        parser.error("expected one worker with --reload")
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(process)d %(levelname)s %(message)s"
    )
    try:
        # Whatever is wrong with the files and numbers is said here, once.
        _tls(options)
        _settings(options)
        check_root_path(options.root_path)
        if options.loop != "asyncio":
            _require(options.loop, f"--loop={options.loop}")
        if options.reload:
            _require("watchfiles", "--reload")
        if options.workers == 1 and not options.reload:
            return _serve(options)
        with _listening(options) as sockets:
            return anyio.run(_Parent(options, sockets).run)
    except (OSError, ValueError) as exc:
        logger.error("%s", exc)
        return _FAILED
    except KeyboardInterrupt:
        # While the application was imported.
        return _INTERRUPTED


# Where to listen


@contextmanager
def _listening(options: argparse.Namespace) -> Generator[list[list[socket.socket]], None, None]:
    """Have the listening sockets of each process.

    Raises:
        ValueError: it cannot listen there.
    """
    with ExitStack() as stack:
        try:
            sockets = _listen(options, stack)
        except (OSError, ValueError) as exc:
            raise ValueError(f"cannot listen on {_place(options)}: {exc}") from exc
        yield sockets


def _listen(options: argparse.Namespace, stack: ExitStack) -> list[list[socket.socket]]:
    if options.fd is not None:
        shared = [stack.enter_context(socket.socket(fileno=number)) for number in options.fd]
        if not all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in shared):
            raise ValueError("expected sockets that listen")
    elif options.uds is not None:
        shared = [_bind_unix(options.uds, stack)]
    else:
        return _bind_tcp(options, stack)
    return [shared] * options.workers


def _bind_tcp(options: argparse.Namespace, stack: ExitStack) -> list[list[socket.socket]]:
    found = socket.getaddrinfo(
        options.host,
        options.port,
        type=socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG,
    )
    port = options.port
    sockets: list[list[socket.socket]] = []
    for _ in range(options.workers):
        own = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = stack.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":
                # Elsewhere it lets two listen on one port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options.workers > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.listen(_BACKLOG)
            port = sock.getsockname()[1]
            own.append(sock)
        sockets.append(own)
    return sockets


def _bind_unix(path: str, stack: ExitStack) -> socket.socket:
    if Path(path).is_socket():
        os.unlink(path)
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(path)
    stack.callback(_unlink, Path(path), os.stat(path))
    sock.listen(_BACKLOG)
    return sock


def _unlink(path: Path, own: os.stat_result) -> None:
    """Remove a socket's file, unless another process has put its own in that place."""
    with suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), own):
            path.unlink()


def _place(options: argparse.Namespace) -> str:
    if options.fd is not None:
        return f"what was inherited as {', '.join(map(str, options.fd))}"
    if options.uds is not None:
        return f"the Unix socket {options.uds}"
    return f"{options.host}, port {options.port}"


# One process


def _serve(options: argparse.Namespace) -> int:
    # As `python -m` does; the script has its own directory there.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        app = _load(options.app)
    except (ImportError, AttributeError, ValueError) as exc:
        logger.error("cannot load %s: %s", options.app, exc)
        return _NOT_STARTED
    except Exception:
        # Where in the application is what its author has to know.
        logger.exception("cannot load %s", options.app)
        return _NOT_STARTED
    backend = "trio" if options.loop == "trio" else "asyncio"
    backend_options: dict[str, Any] = {}
    if backend == "asyncio":
        backend_options["use_uvloop"] = options.loop == "uvloop"
    with _listening(options) as (sockets,):
        run = functools.partial(_run, app, options, sockets)
        return anyio.run(run, backend=backend, backend_options=backend_options)


def _load(name: str) -> Application:
    module, colon, attributes = name.partition(":")
    if not colon or not module or not attributes:
        raise ValueError(f"expected an application as module:attribute, got {name!r}")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    if not callable(found):
        raise ValueError(f"expected an application that can be called, got {found!r:.100}")
    app: Application = found
    return app


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.ssl_certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    except OSError as exc:
        files = " and ".join(filter(None, (options.ssl_certfile, options.ssl_keyfile)))
        raise ValueError(
            f"expected a certificate and its private key (PEM) in {files}: {exc.strerror or exc}"
        ) from None
    return context


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(drain_timeout=options.drain_timeout)


async def _run(
    app: Application, options: argparse.Namespace, sockets: Sequence[socket.socket]
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; at a second one, wait no longer."""
    context = _tls(options)
    status = 0
    server: Server | None = None
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:

            async def serve(*, task_status: TaskStatus[Server]) -> None:
                nonlocal status
                try:
                    await serve_app(
                        app,
                        sockets=sockets,
                        ssl=context,
                        root_path=options.root_path,
                        lifespan=options.lifespan,
                        settings=_settings(options),
                        task_status=task_status,
                    )
                except Exception as exc:
                    if server is None:
                        raise
                    said = isinstance(exc, LifespanFailed)
                    logger.error(
                        "the application did not end well: %s", exc, exc_info=None if said else exc
                    )
                    status = _FAILED
                tasks.cancel_scope.cancel()

            async def close_when_told() -> None:
                told = False
                async for number in signals:
                    logger.info("%s: closing", number.name)
                    if server is None:
                        tasks.cancel_scope.cancel()
                        return
                    if told:
                        # The lifespan's end is not waited for either.
                        await server.close(grace=0)
                        tasks.cancel_scope.cancel()
                        return
                    told = True
                    tasks.start_soon(server.close)

            async def close_with_parent() -> None:
                # The other end of standard input goes with it.
                await anyio.wait_readable(sys.stdin)
                logger.error("the parent process has died: closing")
                if server is None:
                    tasks.cancel_scope.cancel()
                else:
                    await server.close()

            tasks.start_soon(close_when_told)
            if options.supervised:
                tasks.start_soon(close_with_parent)
            logger.info("starting %s", options.app)
            try:
                server = await tasks.start(serve)
            except LifespanFailed as exc:
                logger.error("the application did not start: %s", exc)
                status = _NOT_STARTED
                tasks.cancel_scope.cancel()
            except Exception:
                # With --lifespan=on, it may be anything.
                logger.exception("the application did not start")
                status = _NOT_STARTED
                tasks.cancel_scope.cancel()
            else:
                scheme = "wss" if context is not None else "ws"
                for address in server.addresses:
                    logger.info("listening on %s", _describe(scheme, address))
    return status


def _describe(scheme: str, address: Any) -> str:
    if not isinstance(address, tuple):
        return f"the Unix socket {address}"
    host, port = address
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


# Several processes


class _Parent:
    """Starts the processes that serve, and replaces those that die or are out of date.

    Each has listening sockets of its own on the same port (SO_REUSEPORT), or shares the one there
    is. They are the parent's, so what waits to be accepted outlives a process.
    """

    def __init__(
        self, options: argparse.Namespace, sockets: Sequence[Sequence[socket.socket]]
    ) -> None:
        self._options = options
        self._sockets = sockets
        self._processes: set[Process] = set()
        self._closing = anyio.Event()
        self._status = 0
        self._changed = anyio.Event()

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status."""
        async with anyio.create_task_group() as tasks:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                tasks.start_soon(self._forward, signals)
                if self._options.reload:
                    tasks.start_soon(self._watch)
                async with anyio.create_task_group() as keepers:
                    for own in self._sockets:
                        keepers.start_soon(self._keep_running, own)
                tasks.cancel_scope.cancel()
        return self._status

    def _command(self, sockets: Sequence[socket.socket]) -> list[str]:
        options = self._options
        command = [sys.executable, "-m", "asgi_bridge", options.app, "--supervised"]
        command += [f"--fd={sock.fileno()}" for sock in sockets]
        for name in _FORWARDED:
            value = getattr(options, name)
            if value is not None:
                command.append(f"--{name.replace('_', '-')}={value}")
        return command

    async def _keep_running(self, sockets: Sequence[socket.socket]) -> None:
        pause = 0.0
        while not self._closing.is_set():
            started = anyio.current_time()
            process = await anyio.open_process(
                self._command(sockets),
                # Its end tells the process that this one has died.
                stdin=subprocess.PIPE,
                stdout=None,
                stderr=None,
                pass_fds=[sock.fileno() for sock in sockets],
                # What a terminal sends to all is forwarded by this process alone.
                start_new_session=True,
            )
            self._processes.add(process)
            if self._closing.is_set():
                # It was not there yet when the others were told.
                self._send(signal.SIGTERM)
            async with process:
                status = await process.wait()
            self._processes.discard(process)
            if self._closing.is_set():
                # Less than 0 are those a signal has ended before they were ready for it.
                self._status = self._status or max(status, 0)
                return
            if self._options.reload:
                await self._changed.wait()
                self._changed = anyio.Event()
            elif status == _NOT_STARTED:
                self._status = status
                self._close(signal.SIGTERM)
            else:
                if anyio.current_time() - started >= _LONG_LIFE:
                    pause = 0.0
                logger.error(
                    "process %d ended with status %d; the next one starts in %g s",
                    process.pid,
                    status,
                    pause,
                )
                with anyio.move_on_after(pause):
                    await self._changed.wait()
                pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)

    async def _forward(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            self._close(number)

    def _close(self, number: signal.Signals) -> None:
        self._closing.set()
        self._changed.set()
        self._send(number)

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            # One may have ended by itself. `send_signal` would look, and take its status away from
            # who waits for that: asyncio then says 255.
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    async def _watch(self) -> None:
        watchfiles = _require("watchfiles", "--reload")
        python_files = watchfiles.PythonFilter()
        # Cancelled, it would have its thread look for some seconds more.
        changes = watchfiles.awatch(
            os.getcwd(), watch_filter=python_files, stop_event=self._closing
        )
        async for _ in changes:
            logger.info("a file has changed: starting anew")
            self._changed.set()
            self._send(signal.SIGTERM)


def _require(package: str, option: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"expected the package {package} for {option}, it is missing: "
            f"pip install 'asyncwebsockets[{_EXTRAS.get(package, package)}]'"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
