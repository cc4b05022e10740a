"""What README and examples/ show runs as shown."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from starlette.testclient import TestClient

from asgi_bridge import open_websocket_app
from asyncwebsockets import (
    ConnectionClosedOK,
    Rejected,
    Websocket,
    open_websocket,
    serve,
)

from .pages import free_port
from .peers.with_chromium import Chromium

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from anyio.abc import Process

    from .peers.with_chromium import Browser

ROOT = Path(__file__).parent.parent


def readme_blocks() -> dict[str, str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return {re.match(r"# (\S+)", block)[1]: block for block in blocks}  # type: ignore[index]


@contextmanager
def running(arguments: list[str], port: int) -> Iterator[None]:
    """Run a server for the block, which begins once it listens."""
    # A session of its own, so that hypercorn's worker ends with it.
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, start_new_session=True)
    try:
        while True:
            assert process.poll() is None, "the server ended by itself"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_server_and_the_client_of_readme(backend: str) -> None:
    port = free_port()
    blocks = {name: code.replace("8765", str(port)) for name, code in readme_blocks().items()}
    client = blocks["client.py"].replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})")
    with running(["-c", blocks["server.py"]], port):
        answer = subprocess.run(
            [sys.executable, "-c", client], capture_output=True, text=True, check=True, timeout=30
        )
    assert answer.stdout == "Thanks for saying 'hello'!\n"
    assert answer.stderr == ""


def test_readme_shows_the_examples() -> None:
    for name, code in readme_blocks().items():
        example = (ROOT / "examples" / name).read_text()
        (body,) = re.findall(r"async def .*?\n\n\n|async def .*?\n\n(?=anyio)", code, re.DOTALL)
        for line in body.strip().splitlines()[1:]:
            assert line.split("(")[0] in example


def test_the_demo_makes_a_round_trip_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, "examples/demo.py"],
        cwd=ROOT,
        env={**os.environ, "DEMO_SECONDS": "0.1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.count("The client said and heard 'hello from the client'") == 2
    assert re.search(r"Open http://127\.0\.0\.1:\d+/ in your browser", done.stdout)
    assert done.stderr == ""


def example(name: str) -> Any:
    """Import an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def served(handler: Any, **options: Any) -> AsyncIterator[str]:
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve, handler, "127.0.0.1", 0, **options))
        yield f"ws://127.0.0.1:{server.port}/"
        await server.close(grace=0)


def test_the_index_names_every_example() -> None:
    index = (ROOT / "examples/README.md").read_text()
    assert {path.name for path in (ROOT / "examples").iterdir() if path.is_file()} == {
        *re.findall(r"\]\((\w+\.\w+)\)", index),
        "README.md",
    }


@pytest.mark.anyio
async def test_echo() -> None:
    async with served(example("echo").echo) as url, open_websocket(url) as websocket:
        for data in ("text", b"binary"):
            await websocket.send(data)
            assert (await websocket.receive()).data == data  # type: ignore[attr-defined]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ('{"jsonrpc": "2.0", "id": 1, "method": "add", "params": [1, 2]}', 3),
        ('{"jsonrpc": "2.0", "id": 1, "method": "add", "params": {"a": 1, "b": 2}}', 3),
        ('{"jsonrpc": "2.0", "id": 1, "method": "add", "params": [1]}', -32602),
        ('{"jsonrpc": "2.0", "id": 1, "method": "add", "params": [1, "a"]}', -32603),
        ('{"jsonrpc": "2.0", "id": 1, "method": "none"}', -32601),
        ("{", -32700),
        ("[]", -32600),
        ("[1]", [-32600]),
        (
            '[{"method": "add", "params": [1, 2]}, {"id": 2, "method": "add", "params": [2, 2]}]',
            [4],
        ),
    ],
)
async def test_jsonrpc(sent: str, answer: Any) -> None:
    def essence(reply: Any) -> Any:
        if isinstance(reply, list):
            return [essence(one) for one in reply]
        return reply["result"] if "result" in reply else reply["error"]["code"]

    async with served(example("jsonrpc").handler) as url, open_websocket(url) as websocket:
        await websocket.send(sent)
        assert essence(await websocket.receive_json()) == answer


@pytest.mark.anyio
async def test_jsonrpc_calls_run_side_by_side() -> None:
    async with served(example("jsonrpc").handler) as url, open_websocket(url) as websocket:
        await websocket.send_json({"id": 1, "method": "slow_echo", "params": ["late"]})
        await websocket.send_json({"id": 2, "method": "add", "params": [1, 2]})
        assert [(await websocket.receive_json())["id"] for _ in range(2)] == [2, 1]


@pytest.mark.anyio
async def test_upload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upload = example("upload")
    source = tmp_path / "source"
    data = os.urandom(2**20) * 3 + b"end"
    source.write_bytes(data)
    store = tmp_path / "store"
    store.mkdir()
    async with served(partial(upload.receive_file, directory=store)) as url:
        await upload.send_file(source, url)
        (stored,) = store.iterdir()
        assert stored.read_bytes() == data
        *progress, name = capsys.readouterr().out.splitlines()
        assert progress[0] == "33%"
        assert progress[-1] == "100%"
        assert name == f"stored as {stored.name}"
        stored.unlink()
        async with open_websocket(url) as websocket:
            await websocket.send_json({"size": 2})
            await websocket.send(b"three")
            with pytest.raises(ConnectionClosedOK) as ended:
                await websocket.receive()
        assert ended.value.code == 1008
        assert not list(store.iterdir())


@pytest.mark.anyio
async def test_tunnel() -> None:
    tunnel = example("tunnel")

    async def answer_at_the_end(stream: Any) -> None:
        async with stream:
            received = b"".join([data async for data in stream])
            await stream.send(received[::-1])

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as target,
        await anyio.create_tcp_listener(local_host="127.0.0.1") as entry,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(target.serve, answer_at_the_end)
        port = target.extra(SocketAttribute.local_port)
        async with served(partial(tunnel.exit_end, host="127.0.0.1", port=port)) as url:
            tasks.start_soon(entry.serve, partial(tunnel.entry_end, url=url))
            async with await anyio.connect_tcp(
                "127.0.0.1", entry.extra(SocketAttribute.local_port)
            ) as client:
                await client.send(b"ab" * 100_000)
                # One direction ends, and the other brings the answer.
                await client.send_eof()
                assert b"".join([data async for data in client]) == b"ba" * 100_000
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_token_auth(monkeypatch: pytest.MonkeyPatch) -> None:
    token_auth = example("token_auth")
    monkeypatch.setattr(token_auth, "TOKEN", "secret")
    async with served(token_auth.handler, filter=token_auth.filter) as url:
        async with open_websocket(url, {"Authorization": "Bearer secret"}) as websocket:
            assert await websocket.receive_text() == "welcome"
        with pytest.raises(Rejected) as caught:
            async with open_websocket(url, {"Authorization": "Bearer guess"}):
                raise AssertionError("a wrong token was accepted")
        assert caught.value.status == 401
        async with open_websocket(url) as websocket:
            await websocket.send("secret")
            assert await websocket.receive_text() == "welcome"
        for guess in ("guess", b"secret"):
            async with open_websocket(url) as websocket:
                await websocket.send(guess)
                with pytest.raises(ConnectionClosedOK) as ended:
                    await websocket.receive()
                assert ended.value.code == 3000


@pytest.mark.anyio
async def test_fastapi_app() -> None:
    app = example("fastapi_app").app
    async with open_websocket_app(app, "/ws/") as websocket:
        assert await websocket.receive_text() == "visitor 1"
        await websocket.send("hello")
        assert await websocket.receive_text() == "hello"


def test_fastapi_app_has_its_routes() -> None:
    with TestClient(example("fastapi_app").app) as client:
        assert client.get("/visits").json() == {"visits": 0}


@pytest.mark.anyio
async def test_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard = example("dashboard")
    monkeypatch.setattr(dashboard, "EVERY", 0)
    async with open_websocket_app(dashboard.app, "/live/") as websocket:
        first, second = await websocket.receive_json(), await websocket.receive_json()
    assert first["time"] <= second["time"]
    assert first["value"] >= 0


@pytest.mark.anyio
async def test_graceful() -> None:
    process = await anyio.open_process([sys.executable, "examples/graceful.py", "0"], cwd=ROOT)
    try:
        with anyio.fail_after(30):
            assert process.stdout is not None
            said = b""
            while not said.endswith(b"\n"):
                said += await process.stdout.receive()
            url = f"ws://127.0.0.1:{said.split()[-1].decode()}/"
            async with open_websocket(url) as websocket:
                await websocket.send("hello")
                assert await websocket.receive_text() == "hello"
                process.send_signal(signal.SIGTERM)
                with pytest.raises(ConnectionClosedOK) as ended:
                    await websocket.receive()
            assert (ended.value.code, ended.value.reason) == (1012, "restarting")
            assert b"".join([piece async for piece in process.stdout]) == b"saved\n"
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.aclose()


@pytest.mark.anyio
async def test_reconnecting() -> None:
    async def say_goodbye(websocket: Websocket) -> None:
        assert await websocket.receive_text() == "hello"

    @asynccontextmanager
    async def running(*arguments: str) -> AsyncIterator[tuple[Process, BufferedByteReceiveStream]]:
        process = await anyio.open_process([sys.executable, *arguments], cwd=ROOT)
        try:
            assert process.stdout is not None
            yield process, BufferedByteReceiveStream(process.stdout)
        finally:
            if process.returncode is None:
                process.kill()
            await process.aclose()

    port = free_port()
    url = f"ws://127.0.0.1:{port}/"
    with anyio.fail_after(45):
        async with running("examples/graceful.py", str(port)) as (server, said):
            await said.receive_until(b"listening", 1000)
            async with running("examples/reconnecting.py", url) as (client, heard):
                assert await heard.receive_until(b"hello\n", 1000) == b"connected\n"
                server.send_signal(signal.SIGTERM)
                # It is told of the restart, and then there is no server.
                told = await heard.receive_until(b": the next attempt in ", 1000)
                assert told == b"ConnectionClosedOK"
                assert await server.wait() == 0
                await heard.receive_until(b"Error: the next attempt in ", 1000)
                async with anyio.create_task_group() as tasks:
                    again = await tasks.start(serve, say_goodbye, "127.0.0.1", port)
                    await heard.receive_until(b" s\nconnected\nthe server is done\n", 1000)
                    assert await client.wait() == 0
                    await again.close()


async def _until(browser: Browser, script: str, expected: Any) -> None:
    with anyio.fail_after(30):
        while (seen := await browser.run(script)) != expected:
            assert seen is not None
            await anyio.sleep(0.02)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.skipif(Chromium.missing() is not None, reason=str(Chromium.missing()))
@pytest.mark.anyio
async def test_the_pages_in_chromium(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'return document.querySelector("output").textContent'
    say = """
        document.querySelector("input").value = arguments[0];
        document.querySelector("form").requestSubmit();
        return true;
    """
    chat, live = free_port(), free_port()
    monkeypatch.setenv("DEMO_PORT", str(chat))
    demo = ["examples/demo.py"]
    dashboard = ["-m", "hypercorn", "-b", f"127.0.0.1:{live}", "examples.dashboard:app"]
    chromium = Chromium()
    with running(demo, chat), running(dashboard, live):
        async with chromium.running():
            browser = chromium.browser
            tabs = []
            for _ in range(2):
                tabs.append(await browser.open_tab())
                await browser.visit(f"http://127.0.0.1:{chat}/")
                await _until(browser, said, "connected\n")
            await browser.run(say, "from the second")
            await _until(browser, said, "connected\nfrom the second\n")
            await browser.go_to_tab(tabs[0])
            await _until(browser, said, "connected\nfrom the second\n")
            await browser.run(say, "from the first")
            await browser.go_to_tab(tabs[1])
            await _until(browser, said, "connected\nfrom the second\nfrom the first\n")
            await browser.visit(f"http://127.0.0.1:{live}/")
            points = 'document.querySelector("polyline").getAttribute("points")'
            await _until(browser, f"return {points}.split(' ').length >= 3", True)


def test_the_tests_of_a_bad_network_pass() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "examples/test_network.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    # On asyncio and trio.
    assert "8 passed" in done.stdout
