"""What runs for every message beside the codec is the same in C and in Python.

The lane and the pipe are tested wherever a connection is: ``make pure`` has them in Python.
"""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from asyncwebsockets._implementation import IMPLEMENTATION
from asyncwebsockets._loop import PureWaiter
from asyncwebsockets.pace import PureAccount

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

WAITERS: list[Any] = [PureWaiter]
ACCOUNTS: list[Any] = [PureAccount]
if IMPLEMENTATION == "native":
    from asyncwebsockets import _nativeloop

    # Typed as its twin, but another class.
    WAITERS.append(_nativeloop.Waiter)
    ACCOUNTS.append(_nativeloop.Account)

waiters = pytest.mark.parametrize("kind", WAITERS, ids=lambda kind: kind.__name__)
accounts = pytest.mark.parametrize("kind", ACCOUNTS, ids=lambda kind: kind.__name__)


def run_waiting(
    kind: Any, wait: Callable[[Any], Coroutine[Any, Any, Any]], callback: Callable[..., None]
) -> Any:
    """Run a task that waits, and a callback of the loop with the waiter, the task and the log."""

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        waiter = kind(loop)
        task = asyncio.create_task(wait(waiter))
        await asyncio.sleep(0)
        assert waiter.waiting
        assert not waiter.done()
        assert waiter.get_loop() is loop
        done = loop.create_future()

        def call() -> None:
            try:
                callback(waiter, task)
            except BaseException as exc:
                done.set_exception(exc)
            else:
                done.set_result(None)

        loop.call_soon(call)
        await done
        return await task

    return asyncio.run(main())


@waiters
def test_a_waiting_task_is_resumed_on_the_spot_with_a_value(kind: Any) -> None:
    log: list[Any] = []

    async def wait(waiter: Any) -> str:
        log.append(await waiter)
        log.append(await waiter)
        log.append(await waiter)
        return "done"

    def callback(waiter: Any, task: asyncio.Task[Any]) -> None:
        value = object()
        waiter.resume(value)
        assert log == [value]
        waiter.resume()
        assert log == [value, None]
        waiter.resume(("a", "tuple"))
        assert log == [value, None, ("a", "tuple")]
        assert not waiter.waiting
        # Nobody waits: nothing happens, and the value is nobody's.
        waiter.resume(1)
        waiter.wake()

    assert run_waiting(kind, wait, callback) == "done"


@waiters
def test_a_waiting_task_is_woken_with_the_next_turn(kind: Any) -> None:
    log: list[Any] = []

    async def wait(waiter: Any) -> None:
        log.append(await waiter)

    def callback(waiter: Any, task: asyncio.Task[Any]) -> None:
        waiter.wake()
        assert waiter.done()
        # It goes on already.
        waiter.resume("too late")
        assert not waiter.cancel()
        assert log == []

    run_waiting(kind, wait, callback)
    assert log == [None]


@waiters
def test_a_waiting_task_is_cancelled(kind: Any) -> None:
    log: list[Any] = []

    async def wait(waiter: Any) -> str:
        try:
            await waiter
        except asyncio.CancelledError as exc:
            log.append(exc.args)
        # It can wait again.
        return str(await waiter)

    def callback(waiter: Any, task: asyncio.Task[Any]) -> None:
        task.cancel("reason")
        assert waiter.done()
        waiter.resume("lost")
        asyncio.get_running_loop().call_later(0, lambda: waiter.resume("again"))

    assert run_waiting(kind, wait, callback) == "again"
    assert log == [("reason",)]


@waiters
def test_one_task_waits_at_a_time(kind: Any) -> None:
    async def wait(waiter: Any) -> None:
        await waiter

    async def main() -> None:
        waiter = kind(asyncio.get_running_loop())
        first = asyncio.create_task(wait(waiter))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task waits already"):
            await asyncio.create_task(wait(waiter))
        waiter.wake()
        await first

    asyncio.run(main())


@waiters
def test_a_waiter_is_garbage_with_its_task(kind: Any) -> None:
    class Loop(asyncio.SelectorEventLoop):
        pass

    async def wait(waiter: Any) -> None:
        await waiter

    async def main() -> weakref.ref[Any]:
        task = asyncio.create_task(wait(kind(asyncio.get_running_loop())))
        await asyncio.sleep(0)
        task.cancel()
        return weakref.ref(task)

    loop = Loop()
    reference = loop.run_until_complete(main())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gc.collect()
    assert reference() is None


@accounts
def test_a_checkpoint_is_due_after_so_many_operations_or_bytes(kind: Any) -> None:
    account = kind(lambda: False)
    for sizes, total in (([0], 128), ([512], 128), ([2048], 32), ([65_535, 0], 2), ([1 << 40], 1)):
        # However slow the machine is, one run is quick enough.
        for _ in range(100):
            account.reset()
            count = 1
            while not account.due(sizes[(count - 1) % len(sizes)]):
                count += 1
            if count == total:
                break
        assert count == total


@accounts
def test_a_checkpoint_is_due_after_a_while(kind: Any) -> None:
    account = kind(lambda: False)
    time.sleep(0.002)
    assert account.due(0)


@accounts
def test_a_checkpoint_is_due_for_who_is_cancelled(kind: Any) -> None:
    def fail() -> bool:
        raise KeyError("look")

    account = kind(lambda: True)
    assert account.due(0)
    account = kind(fail)
    with pytest.raises(KeyError, match="look"):
        # However slow the machine is, one look comes before a checkpoint is due anyway.
        for _ in range(100):
            account.reset()
            account.due(0)


@accounts
def test_turns_are_counted(kind: Any) -> None:
    account = kind(lambda: False)
    before = account.turn
    account.due(0)
    assert account.turn == before
    account.reset()
    assert account.turn == before + 1
