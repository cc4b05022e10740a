"""A process that is measured: its start on a core of its own, its CPU and its memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 30

T = TypeVar("T")


class SubjectError(Exception):
    """The process has ended, or never listened."""


class Subject:
    """A running process with its children, for some servers work in one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def _tasks(self) -> Iterator[Path]:
        """Every thread of every process."""
        processes = [str(self._process.pid)]
        for pid in processes:
            for task in Path("/proc", pid, "task").iterdir():
                yield task
                processes += (task / "children").read_text().split()

    def cpu(self) -> int:
        """Return the nanoseconds on a CPU until now."""
        return sum(int((task / "schedstat").read_text().split()[0]) for task in self._tasks())

    def memory(self) -> int:
        """Return the bytes of memory that no other process has a share in."""
        pids = {task.parent.parent for task in self._tasks()}
        kib = 0
        for pid in pids:
            for line in (pid / "smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    kib += int(line.split()[1])
        return kib * 1024

    def once_listening(self, connect: Callable[[], T]) -> T:
        """Connect as soon as somebody listens."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check()
            try:
                return connect()
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise SubjectError("it does not listen") from None
                time.sleep(0.01)

    def check(self) -> None:
        """See that it still runs."""
        if self._process.poll() is not None:
            raise SubjectError(f"it has ended with {self._process.returncode}")


@contextmanager
def running(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], core: int | None
) -> Iterator[Subject]:
    """Run a module of this package for the length of a block."""

    with tempfile.TemporaryFile() as output:
        own = os.sched_getaffinity(0)
        if core is not None:
            # It is inherited.
            os.sched_setaffinity(0, {core})
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.{module}", *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A session of its own, so that what it starts can be ended with it.
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, own)
        try:
            yield Subject(process)
        except Exception as exc:
            output.seek(0)
            said = output.read().decode(errors="replace")[-2000:]
            raise SubjectError(f"{module} {' '.join(arguments)}: {exc}\n{said}") from exc
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """Return a port where nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
