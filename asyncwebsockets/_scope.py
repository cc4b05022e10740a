"""From an opening handshake that succeeded to a `Websocket`, and the scope around one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio

from ._supervisor import Supervisor
from .channel import WireChannel
from .codec import make_codec
from .websocket import Websocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup
    from wsproto.extensions import Extension

    from .events import Request, Response
    from .settings import Settings
    from .transport import Transport

__all__ = ["Opened", "WebsocketScope"]


@dataclass(frozen=True)
class Opened:
    """What an opening handshake has led to.

    Attributes:
        trailing_data: the bytes the peer sent behind its handshake.
    """

    transport: Transport
    role: Literal["client", "server"]
    settings: Settings
    request: Request
    response: Response
    subprotocol: str | None
    extensions: Sequence[Extension]
    trailing_data: bytes

    def websocket(self, supervisor: Supervisor | None) -> Websocket:
        """Return the connection."""
        return Websocket(
            WireChannel(
                self.transport,
                make_codec(self.role, self.extensions),
                self.role,
                trailing_data=self.trailing_data,
                settings=self.settings,
                request=self.request,
                response=self.response,
                subprotocol=self.subprotocol,
                extensions=self.extensions,
                supervisor=supervisor,
            )
        )


class WebsocketScope:
    """The async context manager of the ``open_*`` functions.

    Awaiting it does nothing but return it, for ``async with await open_websocket(...)``.
    """

    def __init__(self, connect: Callable[[], Awaitable[Opened]]) -> None:
        self._connect = connect
        self._task_group: TaskGroup | None = None
        self._websocket: Websocket | None = None

    def __await__(self) -> Generator[None, None, WebsocketScope]:
        yield from ()
        return self

    async def __aenter__(self) -> Websocket:
        if self._task_group is not None:
            raise RuntimeError("this connection's scope was entered before")
        opened = await self._connect()
        self._task_group = anyio.create_task_group()
        await self._task_group.__aenter__()
        supervisor = Supervisor(self._task_group)
        self._task_group.start_soon(supervisor.run)
        self._websocket = opened.websocket(supervisor)
        return self._websocket

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task_group is not None
        assert self._websocket is not None
        try:
            await self._websocket.__aexit__(exc_type, exc, traceback)
        finally:
            # The body's exception does not pass through the group, which would wrap it.
            self._task_group.cancel_scope.cancel()
            await self._task_group.__aexit__(None, None, None)
