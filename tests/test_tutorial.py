"""The tutorial runs from its first page to its last, and what it has built is seen in a browser."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from .pages import DOCS, Terminal, blocks, toctree
from .peers.with_chromium import Chromium

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .peers.with_chromium import Browser

PAGES = [DOCS / f"tutorial/{name}.md" for name in toctree(DOCS / "tutorial/index.md")]


class Reader(Terminal):
    """One who has an environment with all of it already."""

    installed: Sequence[str] = ()

    def type(self, command: str, shown: str) -> None:
        if command.startswith("pip install "):
            self.installed = [name.removeprefix("../") for name in command.split()[2:]]
        elif ".venv" not in command:
            super().type(command, shown)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    try:
        yield reader
    finally:
        reader.close()


@pytest.mark.timeout(180)
def test_the_tutorial_runs_as_it_stands(reader: Reader) -> None:
    for page in PAGES:
        reader.follow(page)
    assert "asyncwebsockets" in reader.installed
    assert all(find_spec(name) for name in reader.installed)


DRAW = """
    const canvas = document.querySelector("canvas");
    const { left, top } = canvas.getBoundingClientRect();
    const move = (kind, x, y) => canvas.dispatchEvent(
        new PointerEvent(kind, { clientX: left + x, clientY: top + y, bubbles: true }));
    const [start, ...rest] = arguments[0];
    move("pointerdown", ...start);
    for (const place of rest) move("pointermove", ...place);
    move("pointerup", ...rest.at(-1));
    return true;
"""
STATE = 'return document.querySelector("#state").textContent'
PEOPLE = 'return [...document.querySelectorAll("#people span")].map((span) => span.textContent)'
# Whether there is ink at each place.
DRAWN = """
    const context = document.querySelector("canvas").getContext("2d");
    return arguments[0].map(([x, y]) => context.getImageData(x, y, 1, 1).data[3] > 0);
"""


async def until(browser: Browser, expected: Any, script: str, *arguments: Any) -> None:
    with anyio.fail_after(30):
        while (seen := await browser.run(script, *arguments)) != expected:
            assert seen is not None
            await anyio.sleep(0.02)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.skipif(Chromium.missing() is not None, reason=str(Chromium.missing()))
@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_the_board_in_chromium(anyio_backend: str, reader: Reader) -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.file is not None:
                reader.write(block)
    (reader.directory / "board.key").write_text(secrets.token_hex())

    def token_for(name: str) -> str:
        done = subprocess.run(
            [sys.executable, "names.py", name],
            cwd=reader.directory,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    reader.type("python server.py &", "serving http://127.0.0.1:...")
    server = (reader.directory / "server.py").read_text()
    (port,) = re.findall(r'"127.0.0.1", (\d+)', server)
    kitchen = f"http://127.0.0.1:{port}/kitchen"
    chromium = Chromium()
    async with chromium.running():
        browser = chromium.browser
        anns = await browser.open_tab()
        await browser.visit(f"{kitchen}#{token_for('Ann')}")
        await until(browser, ["Ann"], PEOPLE)
        bobs = await browser.open_tab()
        await browser.visit(f"{kitchen}#{token_for('Bob')}")
        await until(browser, ["Ann", "Bob"], PEOPLE)
        # Each sees what either draws.
        await browser.run(DRAW, [[40, 40], [200, 40], [200, 200]])
        await browser.go_to_tab(anns)
        await browser.run(DRAW, [[40, 40], [40, 200], [200, 200], [500, 500]])
        for tab in (anns, bobs):
            await browser.go_to_tab(tab)
            places = [[100, 40], [200, 100], [40, 100], [100, 200], [300, 300], [300, 100]]
            await until(browser, [True] * 5 + [False], DRAWN, places)
        # The server is started anew, with an empty board, and the page comes back to it.
        reader.type("kill %1; wait %1", "closing 2 connections")
        await until(browser, "connection lost", STATE)
        reader.type("python server.py &", "serving http://127.0.0.1:...")
        await until(browser, "connected", STATE)
        await until(browser, [False], DRAWN, [[100, 40]])
        # One without a token is told so, and stays away.
        await browser.open_tab()
        await browser.visit(f"{kitchen}#Eve")
        await until(browser, "closed with 3000: expected a token that was signed here", STATE)
    reader.type("kill %1; wait %1", "closing ... connections")
