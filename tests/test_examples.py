"""What README and examples/ show runs as shown."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent


def readme_blocks() -> dict[str, str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return {re.match(r"# (\S+)", block)[1]: block for block in blocks}  # type: ignore[index]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(arguments: list[str], port: int) -> Iterator[None]:
    """Run a server for the block, which begins once it listens."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT)
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
        process.kill()
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
