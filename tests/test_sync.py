"""The facade for scripts, with a server in a thread of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.cookiejar import CookieJar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from asyncwebsockets import (
    ConnectionClosedError,
    ConnectionClosedLocally,
    ConnectionClosedOK,
    ConnectionState,
    HandshakeTimeout,
    Reject,
    Rejected,
    Request,
    Settings,
    UnexpectedMessage,
    Websocket,
    serve,
)
from asyncwebsockets.events import AcceptConnection, BytesMessage, Ping, TextMessage
from asyncwebsockets.sync import SyncWebsocket, connect

from .frames import response_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent

BACKENDS: list[Any] = [
    pytest.param({"backend": "asyncio"}, id="asyncio"),
    pytest.param({"backend": "asyncio", "backend_options": {"use_uvloop": True}}, id="uvloop"),
    pytest.param({"backend": "trio"}, id="trio"),
]

pytestmark = [pytest.mark.parametrize("backend", BACKENDS)]


class Served:
    def __init__(self) -> None:
        self.url = ""
        self.ends: list[tuple[int | None, str | None]] = []
        self.ended = threading.Semaphore(0)
        # By who gets no answer.
        self.asked = threading.Event()

    def end(self) -> tuple[int | None, str | None]:
        """Return how the next connection ended."""
        assert self.ended.acquire(timeout=30)
        return self.ends.pop(0)

    async def filter(self, request: Request) -> Any:
        if request.path == "/no":
            return Reject(403, [("X-A", "b")], b"go away")
        if request.path == "/silent":
            self.asked.set()
            await anyio.sleep_forever()
        return AcceptConnection(
            subprotocol=next(iter(request.subprotocols), None),
            extra_headers=[(b"Set-Cookie", b"a=b")],
        )

    async def handle(self, ws: Websocket) -> None:
        try:
            async for event in ws:
                if isinstance(event, TextMessage):
                    match event.data.split():
                        case ["close", code]:
                            await ws.close(int(code), "as asked")
                        case ["abort"]:
                            await ws.abort()
                        case ["count", kind]:
                            await ws.ping(b"ping")
                            for number in range(3):
                                await ws.send(str(number) if kind == "text" else b"%d" % number)
                            await ws.close(1000)
                        case _:
                            await ws.send(event.data)
                elif isinstance(event, BytesMessage):
                    await ws.send(event.data)
        finally:
            self.ends.append((ws.close_code, ws.close_reason))
            self.ended.release()


@pytest.fixture(scope="module")
def portal() -> Iterator[Any]:
    with start_blocking_portal() as portal:
        yield portal


@contextmanager
def serving(portal: Any, context: ssl.SSLContext | None = None) -> Iterator[Served]:
    served = Served()
    future, server = portal.start_task(
        partial(serve, served.handle, "127.0.0.1", 0, filter=served.filter, ssl=context)
    )
    served.url = f"{'ws' if context is None else 'wss'}://localhost:{server.port}/"
    try:
        yield served
    finally:
        portal.call(server.close)
        future.result()


@pytest.fixture
def served(portal: Any) -> Iterator[Served]:
    threads = threading.active_count()
    with serving(portal) as served:
        yield served
    # Each connection has ended its thread; those that resolved a name may be there still.
    names = [thread.name for thread in threading.enumerate()]
    assert not any("portal" in name for name in names[threads:])


def test_messages_of_every_kind(served: Served, backend: Any) -> None:
    with connect(served.url, {"X-A": "b"}, ["chat"], **backend) as ws:
        assert isinstance(ws, SyncWebsocket)
        assert (ws.subprotocol, ws.state, ws.close_code) == ("chat", ConnectionState.OPEN, None)
        assert ws.request.header("X-A") == "b"
        assert ws.response.status == 101
        assert len(ws.extensions) == 0
        assert ws.local_address is not None
        assert ws.remote_address is not None
        assert repr(ws) == "<SyncWebsocket / OPEN>"
        ws.send("text")
        assert ws.receive_text() == "text"
        ws.send(bytearray(b"binary"))
        assert ws.receive_bytes() == b"binary"
        ws.send_json({"a": [1]})
        assert ws.receive_json() == {"a": [1]}
        ws.send("event")
        assert ws.receive() == TextMessage("event")
        assert ws.ping(b"x") == ws.latency
        ws.send("x" * 1_000_000)
        assert ws.receive_text() == "x" * 1_000_000
        ws.send(b"other")
        with pytest.raises(UnexpectedMessage):
            ws.receive_text()
    assert ws.close_code == 1000
    assert served.end() == (1000, "")


def test_iteration(served: Served, backend: Any) -> None:
    with connect(served.url, **backend) as ws:
        ws.send("count text")
        assert list(ws) == [Ping(b"ping"), *map(TextMessage, "012")]
        assert next(ws, None) is None
    with connect(served.url, **backend) as ws:
        ws.send("count text")
        assert list(ws.iter_text()) == ["0", "1", "2"]
    with connect(served.url, **backend) as ws:
        ws.send("count bytes")
        assert list(ws.iter_bytes()) == [b"0", b"1", b"2"]
    with connect(served.url, **backend) as ws:
        for data in (b"x", b"y", "text"):
            ws.send(data)
        received = []
        with pytest.raises(UnexpectedMessage, match="binary"):
            for item in ws.iter_bytes():
                received.append(item)  # noqa: PERF402
        assert received == [b"x", b"y"]
        ws.send(b"z")
        with pytest.raises(UnexpectedMessage, match="text"):
            next(iter(ws.iter_text()))
        ws.send("abort")
        with pytest.raises(ConnectionClosedError):
            for _ in ws:
                pytest.fail("an event came")


def test_ends(served: Served, backend: Any) -> None:
    ws = connect(served.url, **backend)
    ws.close(4000, "bye")
    ws.close()
    assert served.end() == (4000, "bye")
    assert (ws.close_code, ws.state) == (4000, ConnectionState.CLOSED)
    for use in (lambda: ws.send("x"), ws.receive, ws.ping, lambda: next(iter(ws))):
        with pytest.raises(ConnectionClosedLocally) as closed:
            use()
        assert closed.value.code == 4000
    with ws:
        pass
    with connect(served.url, **backend) as ws:
        with pytest.raises(ValueError, match="close code"):
            ws.close(5)
        assert ws.state is ConnectionState.OPEN
        assert ws.close_reason is None
        ws.send("close 4001")
        ws.wait_closed()
        with pytest.raises(ConnectionClosedOK) as ended:
            ws.receive()
        assert (ended.value.code, ended.value.reason) == (4001, "as asked")
    served.end()
    defect = KeyError("of the body's own")
    with pytest.raises(KeyError) as caught, connect(served.url, **backend):
        raise defect
    assert caught.value is defect
    assert served.end()[0] == 1011
    # What ends a program says nothing of a failure.
    with pytest.raises(SystemExit), connect(served.url, **backend):
        raise SystemExit
    assert served.end()[0] == 1001


def test_time_outs_lose_nothing(served: Served, backend: Any) -> None:
    with connect(served.url, **backend) as ws:
        for receive in (ws.receive, ws.receive_text, ws.receive_bytes, ws.receive_json):
            with pytest.raises(TimeoutError, match=r"timeout=0\.01"):
                receive(timeout=0.01)
        with pytest.raises(TimeoutError):
            ws.wait_closed(0)
        ws.send("kept", timeout=30)
        assert ws.receive_text(timeout=30) == "kept"
        ws.send_json(1, timeout=30)
        assert ws.receive_json(timeout=30) == 1
        assert ws.ping(timeout=30) == ws.latency
    with pytest.raises(HandshakeTimeout):
        connect(f"{served.url}silent", settings=Settings(open_timeout=0.01), **backend)


def test_what_open_websocket_takes_and_raises(
    portal: Any,
    backend: Any,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(portal, server_tls) as served:
        jar = CookieJar()
        with connect(served.url, ssl=client_tls, cookies=jar, proxy=None, **backend) as ws:
            assert ws.request.secure
        assert [cookie.name for cookie in jar] == ["a"]
        with pytest.raises(Rejected) as rejected:
            connect(f"{served.url}no", ssl=client_tls, **backend)
        assert (rejected.value.status, rejected.value.body) == (403, b"go away")
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(served.url, **backend)
        with pytest.raises(FileNotFoundError):
            connect("ws://h/", uds="/there/is/none", **backend)
    with pytest.raises(ValueError, match="scheme"):
        connect("http://h/", **backend)
    with pytest.raises(OSError, match="All connection attempts failed"):
        connect(served.url, **backend)
    with pytest.raises(LookupError):
        connect("ws://h/", backend="twisted")


def test_threads_share_a_connection(served: Served, backend: Any) -> None:
    with connect(served.url, **backend) as ws:
        received: list[str] = []

        def read() -> None:
            received.extend(ws.iter_text())

        reader = threading.Thread(target=read)
        reader.start()

        def write(name: str) -> None:
            for number in range(20):
                ws.send(f"{name} {number}")

        writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join()
        ws.send("close 1000")
        reader.join()
        assert sorted(received) == sorted(f"{name} {n}" for name in "abc" for n in range(20))


def test_another_thread_that_receives_was_faster(
    served: Served, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(served.url, **backend) as ws:
        call = ws._call

        def lose(*args: Any) -> Any:
            result = call(*args)
            taken.append(ws._received.popleft())
            return result

        taken: list[Any] = []
        monkeypatch.setattr(ws, "_call", lose)
        for receive in (ws.receive, ws.receive_text, ws.__next__):
            with monkeypatch.context() as sending:
                sending.setattr(ws, "_call", call)
                ws.send("taken")
            with pytest.raises(anyio.BusyResourceError):
                receive()
        assert [event.data for event in taken] == ["taken"] * 3


@contextmanager
def interrupting(begun: threading.Event, behind: Callable[[], object] = object) -> Iterator[None]:
    """Have Ctrl-C come where this thread waits for another one, once it has begun."""
    main = threading.main_thread().ident
    assert main is not None
    over = threading.Event()

    def interrupt() -> None:
        begun.wait()
        while sys._current_frames()[main].f_code is not threading.Condition.wait.__code__:
            if over.wait(0.001):
                return
        signal.pthread_kill(main, signal.SIGINT)
        behind()

    # What a shell starts in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        begun.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="its signals come to no thread of one's choice")
def test_ctrl_c_interrupts_a_call_and_loses_nothing(served: Served, backend: Any) -> None:
    with connect(served.url, **backend) as ws:
        for number in range(20):
            # The message comes while the call is given up.
            begun, behind = threading.Event(), partial(ws.send, str(number))
            with pytest.raises(KeyboardInterrupt), interrupting(begun, behind):
                begun.set()
                ws.receive()
            assert ws.receive_text() == str(number)
    with pytest.raises(KeyboardInterrupt), interrupting(served.asked):
        connect(f"{served.url}silent", **backend)


def test_what_the_interpreter_does_at_its_exit(
    served: Served, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncwebsockets.sync._PATIENCE", 0.05)
    ws = connect(served.url, **backend)
    ws._close_at_exit()
    assert served.end() == (1001, "")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def shake_hands_only() -> None:
            sock, _ = listening.accept()
            request = sock.recv(65536)
            sock.sendall(response_for(request))
            rest.append(sock)

        rest: list[socket.socket] = []
        thread = threading.Thread(target=shake_hands_only)
        thread.start()
        ws = connect(f"ws://127.0.0.1:{port}/", **backend)
        thread.join()
        ws._close_at_exit()
        assert ws.state is ConnectionState.CLOSED
        rest[0].close()


LEFT_OPEN = """
import json, sys, threading
from asyncwebsockets.sync import connect

ws = connect(sys.argv[1], **json.loads(sys.argv[2]))
ws.send("hello")
print(ws.receive_text())
"""

IN_A_BLOCK = """
import json, sys, threading
from asyncwebsockets.sync import connect

inside = threading.Event()

def run():
    with connect(sys.argv[1], **json.loads(sys.argv[2])) as ws:
        ws.send("hello")
        for text in ws.iter_text():
            print(text)
            inside.set()

threading.Thread(target=run, daemon=True).start()
inside.wait()
"""

EXITING = LEFT_OPEN + "sys.exit(3)"

ENDED_BY_THE_PEER = LEFT_OPEN + "ws.send('close 1000'); ws.wait_closed()"


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [(LEFT_OPEN, 0, 1001), (IN_A_BLOCK, 0, 1001), (EXITING, 3, 1001), (ENDED_BY_THE_PEER, 0, 1000)],
    ids=["left-open", "in-a-block", "exiting", "ended-by-the-peer"],
)
def test_the_interpreter_may_exit(
    script: str, status: int, code: int, served: Served, backend: Any
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, served.url, json.dumps(backend)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", status)
    assert served.end()[0] == code
