"""Every block of code of the documentation runs as it stands, and so do those of docstrings.

Files and commands run in a terminal of their own, fragments in a coroutine of the test, on each
backend, among what `SURROUNDINGS` has for their page: real servers, in whose place the page has
names such as ``example.com``.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import ssl
import textwrap
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from tiny_proxy import HttpProxyHandler

import asgi_bridge
import asyncwebsockets
from asyncwebsockets import Request, Settings, Websocket, errors, events, serve, sync, testing
from asyncwebsockets._tls import default_context
from asyncwebsockets.events import AcceptConnection, Message, Reject

from .pages import BLOCK, DOCS, Terminal, blocks, run_fragment
from .test_howto import PAGES as COMPLETE_PAGES
from .test_proxy import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    import trustme

PAGES = sorted(page for page in DOCS.rglob("*.md") if page not in COMPLETE_PAGES)
# test_command runs it, at a terminal where that is needed.
ELSEWHERE = {DOCS / "command.md"}
# Some of its commands want a server in the internet and a log of the system, and are only shown.
INDENTED = {"command.md"}


@dataclass
class Surroundings:
    """What the fragments of a page are among."""

    authority: trustme.CA
    server_tls: ssl.SSLContext
    names: dict[str, Any] = field(default_factory=dict)
    #: What stands on the page, and what is there in the test.
    instead: dict[str, str] = field(default_factory=dict)

    def text(self, text: str) -> str:
        if not self.instead:
            return text
        # In one go: a port that was put in may have what stands on a page among its digits.
        shown = "|".join(map(re.escape, sorted(self.instead, key=len, reverse=True)))
        return re.sub(shown, lambda match: self.instead[match[0]], text)


class Site:
    """What is behind wss://example.com on the pages."""

    def __init__(self) -> None:
        self.port = 0
        self.feeds = iter([["one", "two"], ["three", "that is all"]])
        self.all_is_said = anyio.Event()

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
            else:
                await websocket.close()
                self.all_is_said.set()
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
        if any(block.is_fragment is fragments for block in blocks(page))
    ]


@pytest.mark.parametrize("page", having(sorted({*PAGES} - ELSEWHERE), fragments=False))
def test_files_and_commands_run_as_they_stand(page: Path, terminal: Terminal) -> None:
    terminal.follow(page, fragments=True)


@pytest.mark.anyio
@pytest.mark.parametrize("page", having(PAGES, fragments=True))
async def test_fragments_run_as_they_stand(page: Path, around: Surroundings) -> None:
    assert page.stem in SURROUNDINGS, f"{page.name} has fragments, and nothing to run them among"
    async with SURROUNDINGS[page.stem](around):
        for block in blocks(page):
            if block.is_fragment:
                await run_fragment(
                    around.text(block.text), around.names, os.fspath(page), block.line
                )


@pytest.mark.parametrize("page", [*PAGES, *COMPLETE_PAGES], ids=lambda page: page.stem)
def test_all_code_of_a_page_is_in_blocks(page: Path) -> None:
    """A block of another shape would not be found, and so not run."""
    blocks(page)
    text = page.read_text()
    assert not re.search(
        r"^ *(?:\.\. (?:code|code-block|literalinclude|doctest)::|>>>)", text, re.M
    )
    if page.name not in INDENTED:
        assert not re.search(r"(?<=\n\n) {4}\S", BLOCK.sub("", text))


@pytest.mark.parametrize(
    "text",
    [
        "```javascript\nrun()\n```\n",
        "```\nplain\n```\n",
        "```console\nonly output\n```\n",
        "```console\n$ echo this\nthat\n```\n",
        "```console\n$ false\n```\n",
        "```console\n$ bash -c 'echo ready; exec sleep 60' &\nready\n```\n",
        "```python\n# alone.py\n```\n",
        "- in a list:\n\n  ```console\n  $ true\n  ```\n",
        "~~~python\nprint()\n~~~\n",
    ],
)
def test_a_page_with_what_does_not_run_or_does_otherwise_fails(
    text: str, terminal: Terminal, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(AssertionError):
        terminal.follow(page, fragments=True)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    "text",
    [
        "print(1)  # -> 2",
        "one = 1  # -> 2",
        "for _ in range(0):\n    print(1)  # -> 1",
        "await anyio.sleep(0)  # -> 1",
        "if True:  # -> 1\n    pass",
    ],
)
@pytest.mark.anyio
async def test_a_fragment_that_gives_something_else_fails(text: str, anyio_backend: str) -> None:
    with pytest.raises(AssertionError):
        await run_fragment(text, {"anyio": anyio})
    right = "one = 1  # -> 1\nprint(await anyio.sleep(0), one)  # -> None 1"
    await run_fragment(right, {"anyio": anyio})


NAMES = {
    name: getattr(module, name)
    for module in (Websocket, events, sync, testing, asgi_bridge, asyncwebsockets)
    for name in getattr(module, "__all__", dir(module))
}


def calls(page: Path) -> Iterator[tuple[str, Any, ast.Call]]:
    """Give what a page calls within its lines, `like(this)`, where it is public here."""
    for code in re.findall(r"`([^`]+)`", BLOCK.sub("", page.read_text())):
        with suppress(SyntaxError):
            for node in ast.walk(ast.parse(code.replace("\n", " "), mode="eval")):
                match node:
                    case ast.Call(ast.Name(name) | ast.Attribute(ast.Name("websocket"), name)):
                        if name in NAMES:
                            yield code, NAMES[name], node


def test_what_pages_call_within_their_lines_has_these_parameters() -> None:
    found = [(page, *call) for page in PAGES for call in calls(page)]
    assert len(found) > 25
    for page, code, function, call in found:
        signature = inspect.signature(function)
        arguments = ["self"] if "self" in signature.parameters else []
        if not any(isinstance(node, ast.Constant) and node.value is ... for node in call.args):
            arguments += map(ast.unparse, call.args)
        try:
            signature.bind_partial(
                *arguments, **{keyword.arg: ... for keyword in call.keywords if keyword.arg}
            )
        except TypeError as error:
            pytest.fail(f"{page.name}: {code}: {error}")


def test_the_limits_of_the_page_are_the_defaults() -> None:
    (table,) = re.findall(
        r"\| setting \|.*\n\|---.*\n((?:\|.*\n)+)", (DOCS / "behaviour.md").read_text()
    )
    units = {"": 1, "s": 1, "KiB": 2**10, "MiB": 2**20}
    shown = {}
    for row in table.splitlines():
        settings, default = row.split(" | ")[:2]
        values = re.findall(r"none|(?<![\w.])\d+(?: (?:s|[KM]iB)\b)?", default)
        for name, value in zip(re.findall(r"`(\w+)`", settings), values, strict=False):
            number, _, unit = value.partition(" ")
            shown[name] = None if value == "none" else int(number) * units[unit]
    defaults = asdict(Settings())
    # It has a section of its own.
    assert defaults.pop("compression") is None
    # It is no limit.
    assert defaults.pop("observer") is None
    assert shown == defaults


def docstrings() -> Iterator[tuple[str, str]]:
    """Give each block of code of a docstring, and the name it is found under."""
    for package in (asyncwebsockets, asgi_bridge):
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(
                    node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                ):
                    continue
                text = ast.get_docstring(node) or ""
                assert ">>>" not in text
                assert "```" not in text
                name = path.stem if isinstance(node, ast.Module) else node.name
                for block in re.findall(r"::\n\n((?:(?: {4}.*)?\n)+)", text + "\n"):
                    yield name, textwrap.dedent(block)


DOCSTRINGS = dict(docstrings())


def test_each_docstring_with_code_is_known() -> None:
    assert [name for name, _ in docstrings()] == ["reconnect", "errors", "sync"]


def test_the_tree_of_exceptions() -> None:
    shown, path = {}, [""]
    for line in DOCSTRINGS["errors"].split("\n")[:-1]:
        indent, name, others = re.fullmatch(r"([│├└─ ]*)(\w+)(?: \((.*)\))?", line).groups()  # type: ignore[union-attr]
        path[len(indent) // 4 + 1 :] = [name]
        shown[name] = path[-2], others
    real = {
        exception.__name__: (
            "" if exception is errors.WebsocketError else exception.__bases__[0].__name__,
            ", ".join(
                base.__name__ if base.__module__ == "builtins" else f"anyio.{base.__name__}"
                for base in exception.__bases__[1:]
            )
            or None,
        )
        for exception in map(partial(getattr, errors), errors.__all__)
    }
    assert shown == real


@pytest.mark.anyio
async def test_the_docstring_of_reconnect(
    around: Surroundings, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "ConnectionClosed": asyncwebsockets.ConnectionClosed,
        "reconnect": asyncwebsockets.reconnect,
        "suppress": suppress,
    }
    async with example(around) as site, anyio.create_task_group() as task_group:
        task_group.start_soon(run_fragment, around.text(DOCSTRINGS["reconnect"]), names)
        await site.all_is_said.wait()
        task_group.cancel_scope.cancel()
    assert capsys.readouterr().out == "one\ntwo\nthree\nthat is all\n"


@pytest.mark.anyio
async def test_the_docstring_of_sync(
    around: Surroundings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with example(around):
        await anyio.to_thread.run_sync(exec, around.text(DOCSTRINGS["sync"]), {})
    assert capsys.readouterr().out == "hello\n"
