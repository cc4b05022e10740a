"""The how-to guides run as they stand, page by page.

A block that begins with a file's name (``# server.py``) is that file. A ``console`` block is typed:
each command behind ``$`` runs in the directory of these files, with ``&`` in the background until
its ``kill %1``, and has to print what stands below it, where ``...`` is anything. The ports of
the pages are replaced by free ones.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .test_examples import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDES = Path(__file__).parent.parent / "docs/howto"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"(?:#|<!--) ([\w.-]+\.\w+)\b")
PORT = re.compile(r"\b(?:800[0-9]|8080|8443|8765)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECONDS = 30


def toctree() -> list[str]:
    """Return the pages that the index lists."""
    text = (GUIDES / "index.md").read_text()
    (listed,) = re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for line in listed.splitlines() if line and not line.startswith(":")]


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
        blocks = BLOCK.findall(page.read_text())
        for index, (language, block) in enumerate(blocks):
            text = self._with_free_ports(block)
            name = NAME.match(text)
            if name is not None:
                assert any(
                    name[1] in other or f"{Path(name[1]).stem}" in other
                    for other_index, (_, other) in enumerate(blocks)
                    if other_index != index
                ), f"{page.name} does nothing with {name[1]}"
                (self.directory / name[1]).write_text(text)
            else:
                assert language == "console", f"{page.name} has a block that does not run:\n{block}"
                _, *typed = re.split(r"^\$ ", text, flags=re.MULTILINE)
                for entry in typed:
                    command, _, shown = entry.partition("\n")
                    self.type(command, shown)
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


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in GUIDES.glob("*.md") if path.stem != "index")
)
def test_a_guide_runs_as_it_stands(name: str, terminal: Terminal) -> None:
    terminal.follow(GUIDES / f"{name}.md")


def test_the_index_lists_the_guides_and_their_links_lead_somewhere() -> None:
    pages = set(GUIDES.glob("*.md"))
    assert {f"{name}.md" for name in [*toctree(), "index"]} == {page.name for page in pages}
    for page in pages:
        for link in LINK.findall(page.read_text()):
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = page.parent / path if path else page
            assert target.is_file(), f"{page.name} links to {link}"
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
            }
            assert not anchor or anchor in slugs, f"{page.name} links to {link}"
