"""A coroutine that a waiter steps behaves as one that its task steps."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets._loop import make_waiter, stepping

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

in_both_ways = pytest.mark.parametrize(
    "way",
    [lambda coroutine: coroutine, lambda coroutine: stepping()(coroutine)],
    ids=["by its task", "by the waiter"],
)


class Stage:
    """A task that awaits a coroutine, and callbacks of the loop that give it values."""

    def __init__(self, way: Any, coroutine: Callable[[Stage], Awaitable[Any]]) -> None:
        self.waiter = make_waiter()
        self.log: list[Any] = []
        self.task = asyncio.create_task(self._run(way, coroutine))

    async def _run(self, way: Any, coroutine: Callable[[Stage], Awaitable[Any]]) -> Any:
        return await way(coroutine(self))

    async def give(self, *values: Any) -> None:
        """Resume with each, from callbacks of their own."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        for value in values:
            done = loop.create_future()

            def call(value: Any = value, done: asyncio.Future[None] = done) -> None:
                self.waiter.resume(value)
                done.set_result(None)

            loop.call_soon(call)
            await done

    async def turns(self, number: int = 3) -> None:
        for _ in range(number):
            await asyncio.sleep(0)


@in_both_ways
def test_values_and_the_result_come_through(way: Any) -> None:
    async def body(stage: Stage) -> str:
        for _ in range(3):
            stage.log.append(await stage.waiter)
        return "result"

    async def main() -> None:
        stage = Stage(way, body)
        await stage.give(1, ("a", "tuple"), None)
        assert stage.log == [1, ("a", "tuple"), None]
        assert await stage.task == "result"

    asyncio.run(main())


@in_both_ways
@pytest.mark.parametrize("error", [ValueError("wrong"), ExceptionGroup("some", [KeyError(1)])])
def test_an_exception_comes_through_as_it_is(way: Any, error: Exception) -> None:
    async def body(stage: Stage) -> None:
        await stage.waiter
        try:
            await stage.waiter
        finally:
            stage.log.append("cleaned up")
            raise error

    async def main() -> None:
        stage = Stage(way, body)
        await stage.give(1, 2)
        with pytest.raises(type(error)) as caught:
            await stage.task
        assert caught.value is error
        assert caught.value.__traceback__ is not None
        assert stage.log == ["cleaned up"]

    asyncio.run(main())


@in_both_ways
def test_it_runs_as_its_task_in_its_context(way: Any) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")

    async def body(stage: Stage) -> None:
        variable.set("the task's")
        for _ in range(3):
            await stage.waiter
            stage.log.append((asyncio.current_task() is stage.task, variable.get()))
            variable.set(variable.get() + "!")

    async def main() -> None:
        stage = Stage(way, body)
        await stage.give(1, 2, 3)
        assert stage.log == [(True, "the task's"), (True, "the task's!"), (True, "the task's!!")]
        assert variable.get() == "nobody's"
        await stage.task

    asyncio.run(main())


@in_both_ways
def test_it_may_wait_for_anything_else_between(way: Any) -> None:
    async def body(stage: Stage) -> list[Any]:
        other = make_waiter()
        got = [await stage.waiter]
        await asyncio.sleep(0)
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "future")
        got.append(await future)
        asyncio.get_running_loop().call_soon(other.resume, "other")
        got.append(await other)
        got.append(await stage.waiter)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(anyio.sleep, 0)
            got.append(await stage.waiter)
        return got

    async def main() -> None:
        stage = Stage(way, body)
        await stage.give(1)
        await stage.turns(9)
        await stage.give(2, 3)
        assert await stage.task == [1, "future", "other", 2, 3]

    asyncio.run(main())


@in_both_ways
def test_it_is_cancelled_while_it_waits(way: Any) -> None:
    async def body(stage: Stage) -> str:
        await stage.waiter
        try:
            await stage.waiter
        except asyncio.CancelledError as exc:
            stage.log.append(exc.args)
        return str(await stage.waiter)

    async def main() -> None:
        stage = Stage(way, body)
        await stage.give(1)
        stage.task.cancel("reason")
        stage.waiter.resume("lost")
        await stage.turns()
        await stage.give("again")
        assert await stage.task == "again"
        assert stage.log == [("reason",)]

    asyncio.run(main())


@in_both_ways
@pytest.mark.parametrize("then", ["waiter", "sleep", "child", "return", "raise"])
def test_it_cancels_itself(way: Any, then: str) -> None:
    """A task that is cancelled while it runs sees that where it waits next, or at its end."""

    async def child(stage: Stage) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stage.log.append("child cancelled")
            raise

    async def body(stage: Stage) -> str:
        other = asyncio.create_task(child(stage))
        await stage.waiter
        stage.task.cancel()
        try:
            if then == "waiter":
                await stage.waiter
            elif then == "sleep":
                await asyncio.sleep(60)
            elif then == "child":
                await other
            elif then == "raise":
                raise KeyError(then)
        except asyncio.CancelledError:
            stage.log.append("cancelled")
            raise
        finally:
            other.cancel()
        return "returned"

    async def main() -> None:
        stage = Stage(way, body)
        await stage.turns()
        await stage.give(1)
        with pytest.raises(KeyError if then == "raise" else asyncio.CancelledError):
            await stage.task
        await stage.turns()
        cancelled = [] if then in ("return", "raise") else ["cancelled"]
        assert [entry for entry in stage.log if entry == "cancelled"] == cancelled
        assert "child cancelled" in stage.log

    asyncio.run(main())


@in_both_ways
def test_a_scope_in_it_is_cancelled(way: Any) -> None:
    async def body(stage: Stage) -> str:
        await stage.waiter
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stage.waiter
            stage.log.append("not cancelled")
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await stage.waiter
            stage.log.append("not cancelled")
        return str(await stage.waiter)

    async def main() -> None:
        stage = Stage(way, body)
        await stage.give(1)
        await stage.turns(9)
        await stage.give("in the end")
        assert await stage.task == "in the end"
        assert stage.log == []

    asyncio.run(main())


@in_both_ways
def test_one_in_another(way: Any) -> None:
    async def inner(stage: Stage) -> str:
        stage.log.append(await stage.waiter)
        stage.log.append(await stage.waiter)
        return "inner"

    async def body(stage: Stage) -> str:
        stage.log.append(await way(inner(stage)))
        stage.log.append(await stage.waiter)
        return "outer"

    async def main() -> None:
        stage = Stage(way, body)
        await stage.give(1, 2, 3)
        assert await stage.task == "outer"
        assert stage.log == [1, 2, "inner", 3]

    asyncio.run(main())


@in_both_ways
def test_what_is_never_resumed_is_garbage(way: Any) -> None:
    class Witness:
        pass

    async def body(stage: Stage) -> None:
        witness = stage.log[0] = Witness()
        await stage.waiter
        del witness

    async def main() -> weakref.ref[Any]:
        stage = Stage(way, body)
        stage.log.append(None)
        await stage.turns()
        reference = weakref.ref(stage.log[0])
        stage.task.cancel()
        await stage.turns()
        return reference

    reference = asyncio.run(main())
    gc.collect()
    assert reference() is None
