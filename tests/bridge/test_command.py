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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme

from asgi_bridge.__main__ import main
from asyncwebsockets import Websocket, open_websocket, open_websocket_client

from .servers import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

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
def running(
    *arguments: str, app: str = APPLICATION, script: Path | None = None, **options: Any
) -> Iterator[Command]:
    command = [str(script)] if script is not None else [sys.executable, "-m", "asgi_bridge"]
    process = subprocess.Popen(
        [*command, app, *arguments],
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


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_signal_waits_no_longer(workers: int) -> None:
    with running("--port=0", f"--workers={workers}") as command:
        (url,) = {command.url() for _ in range(workers)}
        async with connected(f"{url}/stuck") as (ws, _, _):
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


@pytest.mark.parametrize(
    "options", [[], ["--loop=trio"], ["--workers=2"]], ids=["alone", "trio", "workers"]
)
async def test_a_startup_that_takes_too_long_can_be_ended(options: list[str]) -> None:
    app = "tests.bridge.commanded:hangs"
    with running("--port=0", *options, app=app) as command:
        command.read(f"INFO starting {app}")
        for _ in range(2 if "--workers=2" in options else 1):
            command.read("^begun$")
        assert command.end() == 0


async def test_a_startup_ends_with_the_parent() -> None:
    with running("--port=0", "--workers=2", app="tests.bridge.commanded:hangs") as command:
        for _ in range(2):
            command.read("^begun$")
        command.process.kill()
        # Standard error is at its end when the last of them has ended.
        assert command.process.stderr is not None
        said = await anyio.to_thread.run_sync(command.process.stderr.read)
        assert said.count("the parent process has died") == 2
        assert "Traceback" not in said


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


@pytest.mark.parametrize("options", [[], ["--workers=2"]], ids=["alone", "workers"])
async def test_an_application_that_takes_too_long_to_import(
    options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with running(*options, "--port=0", app="slow:app", cwd=tmp_path, env=environment) as command:
        for _ in range(2 if options else 1):
            command.read("^importing$")
        assert command.end(signal.SIGINT) == 130
        assert command.process.stderr is not None
        assert "Traceback" not in command.process.stderr.read()


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


async def test_who_connects_before_the_application_has_started_waits(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    app = "tests.bridge.commanded:starts_when_told"
    with running(f"--uds={path}", app=app, stdin=subprocess.PIPE) as command:
        command.read("^begun$")
        stream = await anyio.connect_unix(path)
        assert command.process.stdin is not None
        command.process.stdin.close()
        async with open_websocket_client(stream, "localhost", "/") as ws:
            assert (await ws.receive_text()).endswith(" / ws")
        command.read("listening on")
        assert command.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_unix_socket_that_was_left_behind(workers: int, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    with running(f"--uds={path}", f"--workers={workers}") as command:
        command.read("listening on the Unix socket")
        # What another one has put in its place is not its own.
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            assert command.end() == 0
            assert path.exists()


@pytest.mark.parametrize("workers", [1, 2])
async def test_inherited_sockets(workers: int) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        numbers = [first.fileno(), second.fileno()]
        options = [f"--fd={number}" for number in numbers]
        with running(*options, f"--workers={workers}", pass_fds=numbers) as command:
            urls = {command.url() for _ in range(2 * workers)}
            assert len(urls) == 2
            for url in urls:
                async with connected(url) as (_, pid, _):
                    assert (pid == command.process.pid) is (workers == 1)
            assert command.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_ipv6(workers: int) -> None:
    with running("--host=::1", "--port=0", f"--workers={workers}") as command:
        async with connected(command.url()) as (ws, _, _):
            assert ws.remote_address is not None
            assert ws.remote_address[0] == "::1"
        assert command.end() == 0


async def test_the_script_finds_the_application_where_it_is_called(tmp_path: Path) -> None:
    code = (ROOT / "tests" / "bridge" / "commanded.py").read_text()
    (tmp_path / "here.py").write_text(code)
    script = Path(sys.executable).with_name("asgi-bridge")
    with running("--port=0", app="here:application", script=script, cwd=tmp_path) as command:
        async with connected(command.url()) as (_, pid, _):
            assert pid == command.process.pid
        assert command.end() == 0


async def test_how_much_it_says() -> None:
    with running("--port=0", "--log-level=error", app="tests.bridge.commanded:hangs") as command:
        command.read("^begun$")
        assert command.end() == 0
        assert command.process.stderr is not None
        assert command.process.stderr.read() == ""


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
        # What cannot be loaded may be so in the next version.
        module.write_text("(")
        command.read("cannot load changing:application")
        module.write_text(code)
        command.url()
        async with connected(url) as (_, third, said):
            assert third not in (first, second)
            assert said == "/ ws"
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
    ],
)
async def test_what_does_not_start(arguments: list[str], status: int, says: str) -> None:
    done = await anyio.run_process(
        [sys.executable, "-m", "asgi_bridge", *arguments], cwd=ROOT, check=False
    )
    assert done.returncode == status
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


async def says(caplog: pytest.LogCaptureFixture, *arguments: str) -> str:
    """Return what the command says where it fails before an application runs."""
    assert await anyio.to_thread.run_sync(main, [APPLICATION, *arguments]) == 1
    (record,) = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert (record.levelname, record.exc_info) == ("ERROR", None)
    caplog.clear()
    return record.getMessage()


@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [
        ("--loop=uvloop", "uvloop", "uvloop"),
        ("--loop=trio", "trio", "trio"),
        ("--reload", "watchfiles", "reload"),
    ],
)
async def test_a_package_that_is_missing(
    option: str,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = await says(caplog, "--port=0", option)
    assert f"the package {package} for {option}" in said
    assert said.endswith(f"pip install 'asyncwebsockets[{extra}]'")


# With several processes, each would say it, again and again.
every_way = pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])


@every_way
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--ssl-certfile=nowhere.pem", "private key (PEM) in nowhere.pem: No such file"),
        ("--drain-timeout=-1", "drain_timeout of 0 or more"),
        ("--drain-timeout=nan", "drain_timeout of 0 or more, or None, got nan"),
        ("--root-path=app/", "a root path such as '/app', got 'app/'"),
    ],
)
async def test_an_option_that_is_wrong(
    option: str, message: str, workers: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert message in await says(caplog, option, workers)


@every_way
async def test_where_it_cannot_listen(
    workers: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as idle:
        port, number = taken.getsockname()[1], os.dup(idle.fileno())
        for options, place in (
            (["--host=256.0.0.1"], "256.0.0.1, port 8000"),
            ([f"--port={port}"], f"127.0.0.1, port {port}"),
            ([f"--uds={file}"], f"the Unix socket {file}"),
            ([f"--fd={number}"], f"what was inherited as {number}: expected sockets that listen"),
        ):
            said = await says(caplog, workers, *options)
            assert said.startswith(f"cannot listen on {place}"), said
    assert file.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a:b", "--workers=0"], "at least one worker"),
        (["a:b", "--port=65536"], "a port from 0 to 65535, got 65536"),
        (["a:b", "--port=-1"], "a port from 0 to 65535, got -1"),
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
