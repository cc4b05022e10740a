"""The pages of the documentation, and a terminal that does what they say.

A block that begins with a file's name (``# server.py``) is that file. A ``console`` block is typed:
each command behind ``$`` runs in the directory of these files, with ``&`` in the background until
its ``kill %1; wait %1`` or ``wait %1``, and has to print what stands below it, where ``...`` is
anything. What a job prints later stands below what makes it do so, such as ``kill -HUP %1``. The
ports of the pages are replaced by free ones.

Python without a file's name is a fragment: it goes on from the one above, as at the prompt of
``python -m asyncio``, and may await. What stands behind ``# ->`` is the line's value, or what it
prints.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

DOCS = Path(__file__).parent.parent / "docs"
FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
BLOCK = re.compile(r"^```([^`\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"(?:#|//|<!--) ([\w.-]+\.\w+)\b")
PORT = re.compile(r"\b(?:800[0-9]|8080|8443|8765)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# None of these is code.
DIRECTIVE = re.compile(r"\{(?:eval-rst|include|note|toctree|warning)\}")
SECONDS = 30
# What pages type that Python does not bring along, and what brings it.
PROGRAMS = {
    "curl": "on Debian, `apt install curl`",
    "nginx": "on Debian, `apt install nginx-light`",
}


def toctree(index: Path) -> list[str]:
    """Return the pages that an index lists."""
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", index.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(trees).splitlines()
    return [line for line in lines if line and not line.startswith(":")]


@dataclass(frozen=True)
class Block:
    """A block of code, and where it begins."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if it is one."""
        name = NAME.match(self.text)
        return name and name[1]

    @property
    def is_fragment(self) -> bool:
        return self.language == "python" and self.file is None

    def uses(self, file: str) -> bool:
        """Whether it types the file's name, imports it, or is pytest, which finds it."""
        name, stem = re.escape(file), re.escape(Path(file).stem)
        if self.language != "console":
            return (
                re.search(rf"^ *(?:from|import) {stem}\b|\b{name}\b", self.text, re.M) is not None
            )
        found_by_pytest = "pytest" in self.text and file.startswith(("conftest.", "test_"))
        return found_by_pytest or re.search(rf"\b{stem}\b", self.text) is not None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, Sphinx's directives aside."""
    text = page.read_text()
    found = list(BLOCK.finditer(text))
    assert len(FENCE.findall(text)) == 2 * len(found), f"{page.name} has a block of another shape"
    return [
        Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])
        for match in found
        if not DIRECTIVE.match(match[1])
    ]


def missing(shown: list[Block]) -> str | None:
    """Say which program is typed that this machine has not."""
    typed = {
        word
        for block in shown
        if block.language == "console"
        for word in re.findall(r"(?:^\$|\|) (\w+) ", block.text, re.MULTILINE)
    }
    for program, how in PROGRAMS.items():
        if program in typed and shutil.which(program, path=environment()["PATH"]) is None:
            return f"{program} is not installed: {how}"
    return None


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

    def follow(self, page: Path, *, fragments: bool = False) -> None:
        """Do what a page says, from its beginning to its end; it may have `fragments` or not."""
        shown = blocks(page)
        if (reason := missing(shown)) is not None:
            # What a machine of a developer need not have, that of the CI must.
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
        for block in shown:
            if block.file is not None:
                assert any(other.uses(block.file) for other in shown if other is not block), (
                    f"{page.name} does nothing with {block.file}"
                )
                self.write(block)
            elif block.language == "console":
                text = self._with_free_ports(block.text)
                before, *typed = re.split(r"^\$ ", text, flags=re.MULTILINE)
                assert not before, f"{block.where} has output of no command"
                for entry in typed:
                    command, _, output = entry.partition("\n")
                    self.type(command, output)
            else:
                assert fragments, f"{block.where} is a block that does not run"
                assert block.is_fragment, f"{block.where} is a block that does not run"
        assert not self.jobs, f"{page.name} leaves {self.jobs} running"

    def write(self, block: Block) -> None:
        """Write the file that a block is."""
        assert block.file is not None, f"{block.where} is no file"
        (self.directory / block.file).write_text(self._with_free_ports(block.text))

    def type(self, command: str, shown: str) -> None:
        if command.endswith(" &"):
            self._begin(command.removesuffix(" &"), shown)
        elif job := re.fullmatch(r"kill %(\d); wait %\1", command):
            self._end(int(job[1]), shown)
        elif job := re.fullmatch(r"wait %(\d)", command):
            self._wait(int(job[1]), shown)
        elif job := re.fullmatch(r"kill -(\w+) %(\d)", command):
            self.jobs[int(job[2])][0].send_signal(signal.Signals[f"SIG{job[1]}"])
            if shown:
                self._until(int(job[2]), command, shown)
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
        self._until(number, f"{command} &", shown)

    def _until(self, number: int, command: str, shown: str) -> None:
        """Wait until a job has printed something more."""
        process, log, seen = self.jobs[number]
        deadline = time.monotonic() + SECONDS
        while True:
            ended = process.poll() is not None
            printed = log.read_bytes()[seen:]
            if shown and matches(shown, printed.decode()):
                break
            assert not ended, f"$ {command}\n{printed.decode()}"
            assert time.monotonic() < deadline, f"$ {command}\n{printed.decode()}"
            time.sleep(0.02)
        self.jobs[number] = process, log, seen + len(printed)

    def _wait(self, number: int, shown: str) -> None:
        process, log, seen = self.jobs.pop(number)
        try:
            status = process.wait(SECONDS)
        finally:
            kill_all_of(process)
        rest = log.read_bytes()[seen:].decode()
        assert matches(shown, rest), f"$ wait %{number}\n{rest}"
        assert status == 0, f"$ wait %{number}\nstatus {status}"

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


class _Comparisons(ast.NodeTransformer):
    """Compares what is said behind ``# ->`` with the statement in whose line it ends."""

    def __init__(self, text: str) -> None:
        #: By line, until it has been compared.
        self.said = {
            number: said[1]
            for number, line in enumerate(text.splitlines(), 1)
            if (said := re.search(r"  # -> (.*)$", line))
        }
        self.names = {"_prints": self._prints, "_gives": self._gives}

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return self._compare(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        return self._compare(node)

    def _compare(self, node: ast.Expr | ast.Assign) -> ast.AST:
        line = node.end_lineno or 0
        if line in self.said:
            match node.value:
                case ast.Call(ast.Name("print")) as call:
                    call.args.insert(0, ast.Constant(line))
                    call.func = ast.Name("_prints", ast.Load())
                case value:
                    arguments = [ast.Constant(line), value]
                    node.value = ast.Call(ast.Name("_gives", ast.Load()), arguments, [])
        fixed: ast.AST = ast.fix_missing_locations(node)
        return fixed

    def _prints(self, line: int, *values: object) -> None:
        self._is_said(line, " ".join(map(str, values)))

    def _gives(self, line: int, value: T) -> T:
        self._is_said(line, repr(value))
        return value

    def _is_said(self, line: int, real: str) -> None:
        said = self.said.pop(line, None)
        assert said is None or matches(said, real), f"it is {real}, not {said}"


async def run_fragment(
    text: str, names: dict[str, Any], filename: str = "<fragment>", line: int = 1
) -> None:
    """Run statements among `names`, to which they add; they may await.

    Raises:
        AssertionError: a line does not give what is said behind its ``# ->``, or none did.
    """
    comparisons = _Comparisons(text)
    tree = comparisons.visit(ast.parse(text))
    ast.increment_lineno(tree, line - 1)
    code = compile(tree, filename, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    names.update(comparisons.names)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result
    assert not comparisons.said, f"{filename}:{line}: {comparisons.said} was not reached"
