"""``python -m asgi_bridge``, run as a user would."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme

from asgi_bridge.__main__ import main
from asyncwebsockets import Websocket, open_websocket, open_websocket_client

from .servers import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True),
]

APPLICATION = "tests.bridge.commanded:application"


class Command:
    """The running command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._said: list[str] = []

    def read(self, pattern: str) -> re.Match[str]:
        """Read what it says until something matches."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it did not say {pattern!r}: {''.join(self._said)}")

    def url(self) -> str:
        return self.read(r"listening on (wss?://\S+)")[1]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


@contextmanager
def running(*arguments: str, app: str = APPLICATION, **options: Any) -> Iterator[Command]:
    process = subprocess.Popen(
        [sys.executable, "-m", "asgi_bridge", app, *arguments],
        **{"cwd": ROOT, **options},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Command(process)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncGenerator[tuple[Websocket, int, str], None]:
    """Connect; gives the connection, the process that serves it, and what else it said."""
    async with open_websocket(url, **options) as ws:
        pid, _, said = (await ws.receive_text()).partition(" ")
        yield ws, int(pid), said


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_and_drains(loop: str, number: signal.Signals) -> None:
    with running("--port=0", f"--loop={loop}", "--root-path=/app") as command:
        async with connected(f"{command.url()}/x") as (ws, pid, said):
            assert pid == command.process.pid
            assert said == "/app/x ws"
            assert await anyio.to_thread.run_sync(command.end, number) == 0
            await ws.wait_closed()
            assert ws.close_code == 1012


async def test_a_second_signal_waits_no_longer() -> None:
    with running("--port=0") as command:
        async with connected(f"{command.url()}/stuck") as (ws, _, _):
            command.process.send_signal(signal.SIGTERM)
            await ws.wait_closed()
            assert ws.close_code == 1012
            assert await anyio.to_thread.run_sync(command.end) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_how_long_an_application_has_to_end(workers: int) -> None:
    with running("--port=0", "--drain-timeout=0", f"--workers={workers}") as command:
        async with connected(f"{command.url()}/stuck"):
            # By default, this would take longer than may be waited here.
            assert await anyio.to_thread.run_sync(command.end) == 0


async def test_a_startup_that_takes_too_long_can_be_ended() -> None:
    with running("--port=0", app="tests.bridge.commanded:hangs") as command:
        command.read("starting")
        assert command.end() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
async def test_a_shutdown_that_takes_too_long_can_be_ended(loop: str) -> None:
    app = "tests.bridge.commanded:hangs_at_the_end"
    with running("--port=0", f"--loop={loop}", app=app) as command:
        command.url()
        command.process.send_signal(signal.SIGTERM)
        command.read("ending")
        assert command.end() == 0


@pytest.mark.parametrize("options", [[], ["--workers=2"]], ids=["alone", "workers"])
async def test_a_shutdown_that_fails(options: list[str]) -> None:
    app = "tests.bridge.commanded:fails_at_the_end"
    with running("--port=0", *options, app=app) as command:
        for _ in range(2 if options else 1):
            command.url()
        command.process.send_signal(signal.SIGTERM)
        command.read("ERROR the application did not end well: no database")
        assert command.process.wait(15) == 1
        assert command.process.stderr is not None
        assert "Traceback" not in command.process.stderr.read()


async def test_an_application_that_cannot_be_loaded_is_shown(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 // 0\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments in (["broken:app"], ["broken:app", "--workers=2", "--port=0"]):
        done = await anyio.run_process(
            [sys.executable, "-m", "asgi_bridge", *arguments],
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        assert done.returncode == 3
        said = done.stderr.decode()
        assert "cannot load broken:app" in said
        assert "ZeroDivisionError" in said


async def test_a_lifespan_that_is_insisted_on() -> None:
    done = await anyio.run_process(
        [
            *(sys.executable, "-m", "asgi_bridge", "tests.bridge.commanded:raises"),
            *("--port=0", "--lifespan=on"),
        ],
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 3
    said = done.stderr.decode()
    assert "the application did not start" in said
    assert "LookupError: no database" in said
    assert "ExceptionGroup" not in said


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(f"--uds={path}") as command:
        command.read("listening on the Unix socket")
        stream = await anyio.connect_unix(path)
        async with open_websocket_client(stream, "localhost", "/") as ws:
            assert (await ws.receive_text()).endswith(" / ws")
        assert command.end() == 0
    assert not path.exists()


async def test_an_inherited_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number = sock.fileno()
        with running(f"--fd={number}", pass_fds=[number]) as command:
            async with connected(command.url()) as (_, pid, _):
                assert pid == command.process.pid
            assert command.end() == 0


async def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with running("--port=0", f"--ssl-certfile={chain}", f"--ssl-keyfile={key}") as command:
        async with connected(command.url(), ssl=context) as (_, _, said):
            assert said == "/ wss"
        assert command.end() == 0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("where", ["tcp", "unix"])
async def test_workers_are_replaced(where: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    options = [f"--uds={path}"] if where == "unix" else ["--port=0"]
    with running("--workers=2", *options) as command:
        seen = command.read(r"listening on (\S+)")[1]
        command.read("listening on")

        @asynccontextmanager
        async def connect() -> AsyncGenerator[tuple[Websocket, int], None]:
            if where == "tcp":
                async with connected(seen) as (ws, pid, _):
                    yield ws, pid
                return
            stream = await anyio.connect_unix(path)
            async with open_websocket_client(stream, "localhost", "/") as ws:
                yield ws, int((await ws.receive_text()).split()[0])

        async with connect() as (ws, first):
            assert first != command.process.pid
            os.kill(first, signal.SIGKILL)
            await ws.wait_closed()
            assert ws.close_code == 1006
        assert command.read(r"process (\d+) ended")[1] == str(first)
        command.read("listening on")
        async with connect() as (ws, second):
            assert second != first
            assert await anyio.to_thread.run_sync(command.end) == 0
            await ws.wait_closed()
            assert ws.close_code == 1012
        assert not alive(second)
    assert not path.exists()


async def test_workers_end_with_their_parent() -> None:
    with running("--workers=2", "--port=0") as command:
        url = command.url()
        command.url()
        async with connected(url) as (ws, _, _):
            command.process.kill()
            await ws.wait_closed()
            assert ws.close_code == 1012
        # Standard error is at its end when the last of them has ended.
        assert command.process.stderr is not None
        said = await anyio.to_thread.run_sync(command.process.stderr.read)
        assert said.count("the parent process has died") == 2


async def test_reload(tmp_path: Path) -> None:
    code = (ROOT / "tests" / "bridge" / "commanded.py").read_text()
    module = tmp_path / "changing.py"
    module.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with running(
        "--reload", "--port=0", app="changing:application", cwd=tmp_path, env=environment
    ) as command:
        url = command.url()
        async with connected(url) as (ws, first, said):
            assert said == "/ ws"
            module.write_text(code.replace("{scope['path']}", "changed"))
            await ws.wait_closed()
            assert ws.close_code == 1012
        command.url()
        async with connected(url) as (_, second, said):
            assert second != first
            assert said == "changed ws"
        assert command.end() == 0


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["nowhere:app"], 3, "cannot load nowhere:app: No module named 'nowhere'"),
        (["tests.bridge.commanded:nothing"], 3, "has no attribute 'nothing'"),
        (["tests.bridge.commanded:ACCEPT"], 3, "expected an application that can be called"),
        (["tests.bridge.commanded"], 3, "expected an application as module:attribute"),
        (["tests.bridge.commanded:fails", "--port=0"], 3, "did not start: no database"),
        (["tests.bridge.commanded:fails", "--port=0", "--workers=2"], 3, "no database"),
        ([APPLICATION, "--ssl-certfile=nowhere.pem"], 1, "No such file"),
        ([APPLICATION, "--drain-timeout=-1", "--workers=2"], 1, "drain_timeout of 0 or more"),
        ([APPLICATION, "--host=256.0.0.1"], 1, ""),
    ],
)
async def test_what_does_not_start(arguments: list[str], status: int, says: str) -> None:
    done = await anyio.run_process(
        [sys.executable, "-m", "asgi_bridge", *arguments], cwd=ROOT, check=False
    )
    assert done.returncode == status
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "package"),
    [("--loop=uvloop", "uvloop"), ("--loop=trio", "trio"), ("--reload", "watchfiles")],
)
async def test_a_package_that_is_missing(
    option: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status = await anyio.to_thread.run_sync(main, [APPLICATION, "--port=0", option])
    assert status == 1
    (record,) = caplog.records
    assert f"the package {package} for {option}" in record.getMessage()
    assert record.exc_info is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a:b", "--workers=0"], "at least one worker"),
        (["a:b", "--uds=x", "--fd=3"], "either --uds or --fd"),
        (["a:b", "--ssl-keyfile=x"], "--ssl-certfile with --ssl-keyfile"),
        (["a:b", "--reload", "--workers=2"], "one worker with --reload"),
    ],
)
async def test_options_that_do_not_go_together(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
