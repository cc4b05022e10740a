# Each is used in place of its twin in Python, and typed as that.
import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from ._front import PureFront as Front
from ._lane import PureLane as Lane
from ._loop import PureWaiter as Waiter
from ._pipe import PurePipe as Pipe
from .pace import PureAccount as Account

__all__ = ["Account", "CancellationLook", "Front", "Lane", "Pipe", "Stepped", "Waiter"]

T = TypeVar("T")

class Stepped(Generic[T]):
    def __init__(
        self,
        coroutine: Awaitable[T],
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Task[Any] | None,
    ) -> None: ...
    def __await__(self) -> Generator[Any, Any, T]: ...

class CancellationLook:
    def __init__(
        self,
        current_task: Callable[[asyncio.AbstractEventLoop], object] | dict[Any, Any],
        loop: asyncio.AbstractEventLoop,
        task_states: dict[Any, Any],
    ) -> None: ...
    def __call__(self) -> bool: ...
