"""Chromium, which is a client only, driven by chromedriver (the W3C's WebDriver protocol)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import anyio
import httpx
from anyio.streams.buffered import BufferedByteReceiveStream

from .peer import Closed, Data, End, Options, Peer, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # It ends when chromedriver does, however that comes about.
    "--remote-debugging-pipe",
    # Else a page of no address is to ask the user before it connects to this machine.
    "--disable-features=LocalNetworkAccessChecks",
]

PAGE = Path(__file__).with_name("page.js")


class Browser:
    """A session of chromedriver, which does one command after the other."""

    def __init__(self, driver: httpx.AsyncClient) -> None:
        self._driver = driver
        self._session = ""

    async def open(self, profile: str) -> None:
        options = {
            "binary": shutil.which("chromium"),
            "args": [*ARGUMENTS, f"--user-data-dir={profile}"],
        }
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
        opened = await self._command("POST", "/session", {"capabilities": capabilities})
        self._session = f"/session/{opened['sessionId']}"
        await self._command("POST", f"{self._session}/url", {"url": "about:blank"})
        await self._execute(PAGE.read_text())

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the page, and wait for its promise."""
        return await self._execute(f"return peer.{name}(...arguments)", *arguments)

    async def close(self) -> None:
        if self._session:
            # What interrupts the tests has ended chromedriver, too.
            with suppress(httpx.TransportError):
                await self._command("DELETE", self._session)

    async def visit(self, url: str) -> None:
        """Show a page in the current tab."""
        await self._command("POST", f"{self._session}/url", {"url": url})

    async def open_tab(self) -> str:
        """Open a tab and go to it."""
        new = await self._command("POST", f"{self._session}/window/new", {"type": "tab"})
        await self.go_to_tab(new["handle"])
        handle: str = new["handle"]
        return handle

    async def go_to_tab(self, handle: str) -> None:
        """Have what follows act on that tab."""
        await self._command("POST", f"{self._session}/window", {"handle": handle})

    async def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page, and return what it returns."""
        return await self._execute(script, *arguments)

    async def _execute(self, script: str, *arguments: Any) -> Any:
        return await self._command(
            "POST", f"{self._session}/execute/sync", {"script": script, "args": arguments}
        )

    async def _command(self, method: str, path: str, body: Any = None) -> Any:
        response = await self._driver.request(method, path, json=body)
        value = response.json()["value"]
        if response.is_error:
            raise RuntimeError(value["message"])
        return value


class ChromiumEnd(End):
    def __init__(self, browser: Browser, opened: dict[str, Any]) -> None:
        super().__init__(opened["subprotocol"])
        self._browser = browser
        self._id = opened["id"]

    async def send(self, data: Data) -> None:
        if isinstance(data, str):
            await self._call("send", {"text": data})
        else:
            await self._call("send", {"binary": b64encode(data).decode()})

    async def receive(self) -> list[Data]:
        while True:
            received = await self._call("receive")
            assert not received["over"]
            message = received["message"]
            if message is not None:
                return [message["text"] if "text" in message else b64decode(message["binary"])]

    async def close(self, code: int | None, reason: str) -> None:
        await self._call("close", code, reason)
        await self.closed()

    async def closed(self) -> Closed:
        while True:
            closed = await self._call("closed")
            if closed is not None:
                return Closed(**closed)

    async def _call(self, name: str, *arguments: Any) -> Any:
        return await self._browser.call(name, self._id, *arguments)


class Chromium(Peer):
    name = "chromium"
    roles = ("client",)
    # A page sends messages; what frames they are in, the browser decides.
    sends_fragments = False
    sends_pings = False
    # It always offers that.
    compresses = True
    limits_size = False
    closes_without_code = True
    # A page can but close.
    can_drop = False
    # A page sees nothing of the handshake but what was agreed on, nor why it has failed.
    shows_headers = False
    shows_refusal = False
    # It trusts what is installed for the user.
    trusts_authority = False
    wants_subprotocol = True

    _browser: Browser

    @property
    def browser(self) -> Browser:
        """The browser itself, for other pages than that of the tests."""
        return self._browser

    @classmethod
    def missing(cls) -> str | None:
        for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
            if shutil.which(program) is None:
                return f"there is no {program}: install {package}"
        return None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        # The profile, and all that the two put into the directory for temporary files.
        with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            process = await anyio.open_process(
                ["chromedriver", "--port=0"],
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": directory},
            )
            async with process, anyio.create_task_group() as tasks:
                assert process.stdout is not None
                output = BufferedByteReceiveStream(process.stdout)
                try:
                    with anyio.fail_after(30):
                        port = await _port(output)
                    tasks.start_soon(_drop, output)
                    async with self._browsing(port, f"{directory}/profile"):
                        yield
                finally:
                    with suppress(ProcessLookupError):
                        process.terminate()
                    tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def _browsing(self, port: str, profile: str) -> AsyncGenerator[None, None]:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False
        ) as driver:
            self._browser = Browser(driver)
            try:
                await self._browser.open(profile)
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self._browser.close()

    @asynccontextmanager
    async def connect(self, url: str, options: Options) -> AsyncGenerator[End, None]:
        opened = await self._browser.call("connect", url, list(options.subprotocols))
        if "refused" in opened:
            raise Refused(None, code=opened["refused"])
        end = ChromiumEnd(self._browser, opened)
        yield end
        await end.close(1000, "")


async def _port(output: BufferedByteReceiveStream) -> str:
    """Read the port that chromedriver has chosen."""
    seen = b""
    while True:
        try:
            line = await output.receive_until(b"\n", 2**16)
        except (anyio.EndOfStream, anyio.IncompleteRead):
            raise RuntimeError(f"chromedriver has ended: {seen.decode()}") from None
        seen += line + b"\n"
        found = re.search(rb"started successfully on port (\d+)", line)
        if found:
            return found[1].decode()


async def _drop(output: BufferedByteReceiveStream) -> None:
    """Have chromedriver never wait for a reader."""
    async for _ in output:
        pass
