"""The pages of the documentation, and a terminal that does what they say.

A block that begins with a file's name (``# server.py``) is that file. A ``console`` block is typed:
each command behind ``$`` runs in the directory of these files, with ``&`` in the background until
its ``kill %1``, and has to print what stands below it, where ``...`` is anything. The ports of
the pages are replaced by free ones.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
BLOCK = re.compile(r"^```([^`\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"(?:#|//|<!--) ([\w.-]+\.\w+)\b")
PORT = re.compile(r"\b(?:800[0-9]|8080|8443|8765)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# None of these is code.
DIRECTIVE = re.compile(r"\{(?:eval-rst|include|note|toctree|warning)\}")
SECONDS = 30


def toctree(index: Path) -> list[str]:
    """Return the pages that an index lists."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", index.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(trees).splitlines()
    return [line for line in lines if line and not line.startswith(":")]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each block of a page, Sphinx's directives aside."""
    text = page.read_text()
    found: list[tuple[str, str]] = BLOCK.findall(text)
    assert len(FENCE.findall(text)) == 2 * len(found), f"{page.name} has a block of another shape"
    return [(language, block) for language, block in found if not DIRECTIVE.match(language)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def matches(shown: str, printed: str) -> bool:
    pattern = re.escape(shown.strip()).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


class Terminal:
    """What a reader has in front of them: a directory, commands, and jobs in the background."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.jobs: dict[int, tuple[subprocess.Popen[bytes], Path, int]] = {}
        self._ports: dict[str, str] = {}

    def _with_free_ports(self, text: str) -> str:
        for port in PORT.findall(text):
            if port not in self._ports:
                self._ports[port] = str(free_port())
        return PORT.sub(lambda match: self._ports[match[0]], text)

    def follow(self, page: Path) -> None:
        """Do what a page says, from its beginning to its end."""
        shown = blocks(page)
        for index, (language, block) in enumerate(shown):
            text = self._with_free_ports(block)
            name = NAME.match(text)
            if name is not None:
                assert any(
                    name[1] in other or f"{Path(name[1]).stem}" in other
                    for other_index, (_, other) in enumerate(shown)
                    if other_index != index
                ), f"{page.name} does nothing with {name[1]}"
                (self.directory / name[1]).write_text(text)
            else:
                assert language == "console", f"{page.name} has a block that does not run:\n{block}"
                before, *typed = re.split(r"^\$ ", text, flags=re.MULTILINE)
                assert not before, f"{page.name} has output of no command:\n{block}"
                for entry in typed:
                    command, _, output = entry.partition("\n")
                    self.type(command, output)
        assert not self.jobs, f"{page.name} leaves {self.jobs} running"

    def type(self, command: str, shown: str) -> None:
        if command.endswith(" &"):
            self._begin(command.removesuffix(" &"), shown)
        elif job := re.fullmatch(r"kill %(\d)", command):
            self._end(int(job[1]), shown)
        else:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            assert matches(shown, done.stdout), f"$ {command}\n{done.stdout}"
            assert done.returncode == 0, f"$ {command}\nstatus {done.returncode}"

    def _begin(self, command: str, shown: str) -> None:
        """Start a job, and wait until it says that it has started."""
        number = max(self.jobs, default=0) + 1
        log = self.directory / f".job{number}-{time.monotonic_ns()}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.jobs[number] = process, log, 0
        deadline = time.monotonic() + SECONDS
        while not (shown and matches(shown, log.read_text())):
            assert process.poll() is None, f"$ {command} &\n{log.read_text()}"
            assert time.monotonic() < deadline, f"$ {command} &\n{log.read_text()}"
            time.sleep(0.02)
        self.jobs[number] = process, log, log.stat().st_size

    def _end(self, number: int, shown: str) -> None:
        process, log, seen = self.jobs.pop(number)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS)
        finally:
            kill_all_of(process)
        rest = log.read_bytes()[seen:].decode()
        assert matches(shown, rest), f"$ kill %{number}\n{rest}"

    def close(self) -> None:
        for process, _, _ in self.jobs.values():
            kill_all_of(process)
            process.wait()


def kill_all_of(process: subprocess.Popen[bytes]) -> None:
    """End a job with what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def environment() -> dict[str, str]:
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COV", "PYTEST"))
        },
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
        # As a terminal has it.
        "PYTHONUNBUFFERED": "1",
    }
