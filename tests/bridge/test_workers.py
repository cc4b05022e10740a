"""When the command replaces a process that has died: real processes, on trio's mock clock."""

from __future__ import annotations

import logging
import signal
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from trio.testing import MockClock

from asgi_bridge import __main__ as command

from ..conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.anyio

DIES = [sys.executable, "-S", "-c", "raise SystemExit(7)"]
LIVES = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def anyio_backend() -> Any:
    return ("trio", {"clock": MockClock(autojump_threshold=0)})


class Parent(command._Parent):
    """Has processes that do what the test says, and notes when it starts them."""

    def __init__(self, plan: Callable[[int], Sequence[str]]) -> None:
        super().__init__(command._parser().parse_args(["module:app"]), [])
        self.starts: list[float] = []
        self._plan = plan

    def _command(self, sockets: object) -> list[str]:
        self.starts.append(trio.current_time())
        return list(self._plan(len(self.starts)))

    @property
    def pauses(self) -> list[Any]:
        return [
            pytest.approx(later - earlier)
            for earlier, later in zip(self.starts, self.starts[1:], strict=False)
        ]


async def test_processes_that_die_at_once_are_replaced_ever_more_slowly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def plan(number: int) -> list[str]:
        if number == 11:
            parent._close(signal.SIGTERM)
        return DIES

    parent = Parent(plan)
    await parent._keep_running([])
    assert parent.pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    last = caplog.records[-1]
    assert last.levelno == logging.ERROR
    assert last.getMessage().endswith("ended with status 7; the next one starts in 60 s")
    assert len(caplog.records) == 10


async def test_one_that_has_lived_for_a_while_is_replaced_at_once() -> None:
    fourth = anyio.Event()

    def plan(number: int) -> list[str]:
        if number == 4:
            fourth.set()
            return LIVES
        if number == 7:
            parent._close(signal.SIGTERM)
        return DIES

    parent = Parent(plan)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parent._keep_running, [])
        # The clock stands still as long as this task is busy.
        await fourth.wait()
        await until(lambda: bool(parent._processes))
        await trio.sleep(60)
        (process,) = parent._processes
        process.kill()
    assert parent.pauses == [0, 1, 2, 60, 1, 2]


async def test_a_pause_ends_when_the_command_is_to_close() -> None:
    eighth = anyio.Event()

    def plan(number: int) -> list[str]:
        if number == 8:
            eighth.set()
        return DIES

    parent = Parent(plan)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(parent._keep_running, [])
        await eighth.wait()
        await until(lambda: bool(parent._processes))
        await until(lambda: not parent._processes)
        closed = trio.current_time()
        parent._close(signal.SIGTERM)
    assert trio.current_time() == closed
    assert len(parent.starts) == 8


async def test_a_process_that_starts_while_the_command_closes_is_ended() -> None:
    def plan(number: int) -> list[str]:
        parent._close(signal.SIGTERM)
        return LIVES

    parent = Parent(plan)
    await parent._keep_running([])
    assert len(parent.starts) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_process_that_has_ended_need_not_be_told() -> None:
    parent = Parent(lambda number: DIES)
    async with await anyio.open_process(DIES) as process:
        await process.wait()
        parent._processes.add(process)
        parent._close(signal.SIGTERM)
    assert process.returncode == 7
