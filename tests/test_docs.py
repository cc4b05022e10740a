"""Every block of code of the documentation runs as it stands, and so do those of docstrings.

Files and commands run in a terminal of their own, fragments in a coroutine of the test, on each
backend, among what `SURROUNDINGS` has for their page: real servers, in whose place the page has
names such as ``example.com``.
"""

from __future__ import annotations

import os
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tiny_proxy import HttpProxyHandler

from asyncwebsockets import Request, Websocket, serve
from asyncwebsockets._tls import default_context
from asyncwebsockets.events import AcceptConnection, Message, Reject

from .pages import DOCS, Terminal, blocks, run_fragment
from .test_proxy import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import trustme

PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("reference/*.md"))]
# Theirs do not run yet.
ELSEWHERE = {"command.md"}


@dataclass
class Surroundings:
    """What the fragments of a page are among."""

    authority: trustme.CA
    server_tls: ssl.SSLContext
    names: dict[str, Any] = field(default_factory=dict)
    #: What stands on the page, and what is there in the test.
    instead: dict[str, str] = field(default_factory=dict)

    def text(self, text: str) -> str:
        for shown, real in self.instead.items():
            text = text.replace(shown, real)
        return text


class Site:
    """What is behind wss://example.com on the pages."""

    def __init__(self) -> None:
        self.port = 0
        self.feeds = iter([["one", "two"], ["three", "that is all"]])

    async def filter(self, request: Request) -> bool | AcceptConnection | Reject:
        if request.path == "/login":
            return AcceptConnection(extra_headers=[(b"Set-Cookie", b"session=abc; Path=/")])
        if request.path == "/private":
            return request.header("Authorization") == "Bearer token-2" or Reject(401)
        if request.path == "/old-chat":
            return Reject(302, [("Location", "/chat")])
        if request.path == "/to-plain-ws":
            return Reject(302, [("Location", "ws://example.com/chat")])
        return True

    async def handler(self, websocket: Websocket) -> None:
        path = websocket.request.path
        if path == "/feed":
            feed = next(self.feeds)
            for line in feed:
                await websocket.send(line)
            if feed[-1] != "that is all":
                await websocket.abort()
        elif path == "/private":
            await websocket.send("welcome, token-2")
            await websocket.close(4001)
        else:
            async for evt in websocket:
                if isinstance(evt, Message):
                    await websocket.send(evt.data)

    @asynccontextmanager
    async def running(self, **where: Any) -> AsyncIterator[Site]:
        async with anyio.create_task_group() as task_group:
            run = partial(serve, self.handler, filter=self.filter, **where)
            server = await task_group.start(run)
            if "uds" not in where:
                self.port = server.port
            yield self
            await server.close()


@asynccontextmanager
async def example(around: Surroundings) -> AsyncIterator[Site]:
    """Have a server in place of wss://example.com."""
    async with Site().running(host="localhost", port=0, ssl=around.server_tls) as site:
        around.instead["wss://example.com"] = f"wss://localhost:{site.port}"
        yield site


@asynccontextmanager
async def client(around: Surroundings) -> AsyncIterator[None]:
    """Have a socket in the file system, and proxies that want a password or a token."""
    plain = HttpProxyHandler(username="user", password="password")
    async with (
        example(around) as site,
        site.running(uds="app.sock"),
        listening(plain.handle) as http,
        listening(HttpProxyHandler().handle, around.server_tls) as https,
    ):
        around.instead |= {
            "/run/app.sock": "app.sock",
            "proxy.example:3128": f"localhost:{http}",
            "https://proxy.example": f"https://localhost:{https}",
            "443": str(site.port),
        }
        yield


SURROUNDINGS: dict[str, Callable[[Surroundings], AbstractAsyncContextManager[Any]]] = {
    "client": client,
    "guide": example,
}


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def around(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Surroundings]:
    """The directory of the test, and a machine that trusts the certificate of example.com."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "example.com").configure_cert(context)
    default_context.cache_clear()
    yield Surroundings(authority, context)
    default_context.cache_clear()


def having(pages: list[Path], *, fragments: bool) -> list[Any]:
    return [
        pytest.param(page, id=os.fspath(page.relative_to(DOCS).with_suffix("")))
        for page in pages
        if page.name not in ELSEWHERE
        and any(block.is_fragment is fragments for block in blocks(page))
    ]


@pytest.mark.parametrize("page", having(PAGES, fragments=False))
def test_files_and_commands_run_as_they_stand(page: Path, terminal: Terminal) -> None:
    terminal.follow(page, fragments=True)


@pytest.mark.anyio
@pytest.mark.parametrize("page", having(PAGES, fragments=True))
async def test_fragments_run_as_they_stand(page: Path, around: Surroundings) -> None:
    async with SURROUNDINGS[page.stem](around):
        for block in blocks(page):
            if block.is_fragment:
                await run_fragment(
                    around.text(block.text), around.names, os.fspath(page), block.line
                )
