"""Fixtures: one test body runs on every backend, codec and transport."""

from __future__ import annotations

import os
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trustme
from anyio.abc import AsyncResource, ByteStream, ObjectStream, SocketAttribute
from anyio.lowlevel import checkpoint
from anyio.streams.stapled import MultiListener, StapledObjectStream
from anyio.streams.tls import TLSStream

import asyncwebsockets._scope as scope_module
from asyncwebsockets import Settings, Websocket, open_websocket_client, open_websocket_server
from asyncwebsockets.codec import IMPLEMENTATION, Codec, PureCodec, make_codec

from .pages import Terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

# No test is to go through this machine's proxy.
for variable in list(os.environ):
    if variable.lower().endswith("_proxy"):
        del os.environ[variable]

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]


def native_codec(*, client: bool, extensions: Sequence[Any] = ()) -> Codec:
    return make_codec("client" if client else "server", extensions, "native")


#: Each is made with `client` and `extensions`.
CODECS: list[Any] = [pytest.param(PureCodec, id="pure")]
if IMPLEMENTATION == "native":
    CODECS.append(pytest.param(native_codec, id="native"))

TRANSPORTS = ["memory", "tcp", "unix", "tls", "stream"]

Stream = ByteStream | ObjectStream[bytes]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what adds only time: a codec does not know its transport.

    The native codec runs on each transport, and the pure one on two of them; on each of them
    where it is the only one.
    """
    if IMPLEMENTATION == "native":
        items[:] = [item for item in items if not _is_repetition(item)]


def _is_repetition(item: pytest.Item) -> bool:
    params = (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
    return params.get("codec") is PureCodec and params.get("pairs") in ("unix", "tls", "stream")


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What makes a codec; connections opened in the test use it."""
    made = request.param

    def make_codec(role: str, extensions: Sequence[Any] = ()) -> Any:
        return made(client=role == "client", extensions=extensions)

    monkeypatch.setattr(scope_module, "make_codec", make_codec)
    return made


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """Does what pages say, in a directory of its own."""
    terminal = Terminal(tmp_path)
    try:
        yield terminal
    finally:
        terminal.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until something holds."""
    while not condition():
        await checkpoint()


async def cut(stream: AsyncResource) -> None:
    """Close at once, without TLS's own closing; what that leaves undone is no error here."""
    with suppress(anyio.BrokenResourceError, OSError):
        await anyio.aclose_forcefully(stream)


_memory_streams: list[Any] = []


@pytest.fixture(autouse=True)
def close_memory_streams() -> Iterator[None]:
    """Close what tests leave open of their pairs; anyio warns about it."""
    yield
    while _memory_streams:
        _memory_streams.pop().close()


def memory_pair(size: int = 16) -> tuple[Stream, Stream]:
    """Two ends of a pipe in memory; `size` pieces may wait in each direction."""
    send_a, receive_a = anyio.create_memory_object_stream[bytes](size)
    send_b, receive_b = anyio.create_memory_object_stream[bytes](size)
    _memory_streams.extend((send_a, receive_a, send_b, receive_b))
    return StapledObjectStream(send_a, receive_b), StapledObjectStream(send_b, receive_a)


async def accept_one(listener: MultiListener[Any]) -> Stream:
    stream: Stream = await listener.listeners[0].accept()  # type: ignore[attr-defined]
    return stream


@dataclass(eq=False)
class Opaque(ByteStream):
    """A stream that does not show what it is made of."""

    inner: Any

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data: bytes = await self.inner.receive(max_bytes)
        return data

    async def send(self, item: bytes) -> None:
        await self.inner.send(item)

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()

    @property
    def extra_attributes(self) -> Any:
        return self.inner.extra_attributes


@dataclass
class Pairs:
    """Makes connected streams of one kind, and connections on them."""

    kind: str
    directory: Path
    server_tls: ssl.SSLContext
    client_tls: ssl.SSLContext
    made: int = 0

    @property
    def on_sockets(self) -> bool:
        """Whether the library uses the sockets themselves."""
        return self.kind in ("tcp", "unix", "tls")

    @property
    def secure(self) -> bool:
        """Whether there is TLS on the streams."""
        return self.kind in ("tls", "stream")

    async def streams(self) -> tuple[Stream, Stream]:
        """Return the client's and the server's end."""
        if self.kind == "memory":
            return memory_pair()
        if self.kind == "unix":
            self.made += 1
            path = self.directory / f"socket{self.made}"
            async with await anyio.create_unix_listener(path) as unix:
                near: Stream = await anyio.connect_unix(path)
                return near, await unix.accept()
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(SocketAttribute.local_port)
            near = await anyio.connect_tcp("127.0.0.1", port)
            far = await accept_one(listener)
        if self.kind == "tcp":
            return near, far
        ends: list[Any] = [near, far]
        if self.kind == "stream":
            ends = [Opaque(near), Opaque(far)]

        async def wrap(index: int, **kwargs: Any) -> None:
            ends[index] = await TLSStream.wrap(ends[index], **kwargs)

        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: wrap(0, hostname="localhost", ssl_context=self.client_tls))
            tg.start_soon(lambda: wrap(1, server_side=True, ssl_context=self.server_tls))
        return ends[0], ends[1]

    @asynccontextmanager
    async def connect(
        self,
        settings: Settings | None = None,
        *,
        client: Settings | None = None,
        server: Settings | None = None,
        filter: Callable[[Any], Awaitable[object]] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[tuple[Websocket, Websocket]]:
        """Give the client's and the server's end of a connection, each in its scope."""
        near, far = await self.streams()
        ready, finished = anyio.Event(), anyio.Event()
        box: list[Websocket] = []

        async def serve() -> None:
            async with open_websocket_server(far, filter, settings=server or settings) as ws:
                box.append(ws)
                ready.set()
                await finished.wait()

        async with anyio.create_task_group() as tg:
            tg.start_soon(serve)
            try:
                async with open_websocket_client(
                    near, ("localhost", 80), "/", settings=client or settings, **kwargs
                ) as ws:
                    await ready.wait()
                    yield ws, box[0]
                    finished.set()
            finally:
                finished.set()


@pytest.fixture(params=TRANSPORTS)
def pairs(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> Iterator[Pairs]:
    yield Pairs(request.param, tmp_path, server_tls, client_tls)
