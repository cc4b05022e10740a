"""The ASGI servers, each a process that listens on loopback for as long as the tests run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = "tests.bridge.app:application"
START_SECONDS = 30


@dataclass(frozen=True)
class AsgiServer:
    """A server and how it is started; ``{port}`` and ``{app}`` are filled in."""

    name: str
    command: Sequence[str]


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
        ("uvicorn", "--ws", name, "--host", "127.0.0.1", "--port", "{port}", "{app}"),
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
    ),
    AsgiServer("anycorn", ("anycorn", "-b", "127.0.0.1:{port}", "{app}")),
]


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
            self._ports[key] = self._stack.enter_context(running(server, log, app))
        return self._ports[key]


@contextmanager
def running(server: AsgiServer, log: Path, app: str) -> Iterator[int]:
    """Run a server; gives its port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    arguments = [part.format(port=port, app=app) for part in server.command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(process, port, log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
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
