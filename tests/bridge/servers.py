"""The ASGI servers, each a process that listens on loopback for as long as the tests run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = "tests.bridge.app:application"
START_SECONDS = 30


@dataclass(frozen=True)
class AsgiServer:
    """A server and how it is started; ``{port}`` and ``{app}`` are filled in."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


SERVERS = [
    AsgiServer(
        f"hypercorn-{worker}",
        ("hypercorn", "-k", worker, "-b", "127.0.0.1:{port}", "--graceful-timeout", "1", "{app}"),
    )
    for worker in ("asyncio", "uvloop", "trio")
]
SERVERS += [
    AsgiServer(
        f"uvicorn-{name}",
        (
            *("uvicorn", "--ws", name, "--host", "127.0.0.1", "--port", "{port}"),
            *("--timeout-graceful-shutdown", "1", "{app}"),
        ),
    )
    for name in ("websockets-sansio", "wsproto")
]
SERVERS += [
    AsgiServer(
        "daphne", ("tests.bridge.patient_daphne", "-b", "127.0.0.1", "-p", "{port}", "{app}")
    ),
    AsgiServer(
        "granian",
        ("granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}", "{app}"),
        # There a filter whose client has left waits for nothing else.
        {"OPEN_TIMEOUT": "2"},
    ),
    AsgiServer(
        "anycorn", ("anycorn", "-b", "127.0.0.1:{port}", "--graceful-timeout", "1", "{app}")
    ),
]

#: Our own, for what happens to a process.
OURS = AsgiServer("asgi-bridge", ("asgi_bridge", "--port={port}", "--drain-timeout=1", "{app}"))


@dataclass(frozen=True)
class Running:
    """A server's process, and where it listens."""

    process: subprocess.Popen[bytes]
    port: int


class Fleet:
    """The servers in use, each started when it is first asked for."""

    def __init__(self, stack: ExitStack, logs: Path) -> None:
        self._stack = stack
        self._logs = logs
        self._ports: dict[tuple[str, str], int] = {}

    def port(self, server: AsgiServer, app: str = APPLICATION) -> int:
        """Return the port on which a server runs an application."""
        key = server.name, app
        if key not in self._ports:
            log = self._logs / f"{server.name}-{len(self._ports)}.log"
            self._ports[key] = self._stack.enter_context(running(server, log, app)).port
        return self._ports[key]


@contextmanager
def running(
    server: AsgiServer, log: Path, app: str, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run a server, and end it with all its processes."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    arguments = [part.format(port=port, app=app) for part in server.command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                **server.environment,
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, port, log)
            yield Running(process, port)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            # Some have processes of their own, which may outlive them.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the server did not start:\n{log.read_text()}")
