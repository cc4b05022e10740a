"""From an opening handshake that succeeded to a `Websocket`, and the scope around one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio

from ._observing import UNOBSERVED, tell
from ._supervisor import Supervisor
from ._trace import traced
from .channel import WireChannel
from .codec import make_codec
from .websocket import Websocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from types import TracebackType

    from wsproto.extensions import Extension

    from .events import Request, Response
    from .observation import Observation
    from .settings import Settings
    from .transport import Transport

__all__ = ["Background", "Opened", "WebsocketScope"]


@dataclass(frozen=True)
class Opened:
    """What an opening handshake has led to.

    Attributes:
        trailing_data: the bytes the peer sent behind its handshake.
        observation: is told of the connection.
    """

    transport: Transport
    role: Literal["client", "server"]
    settings: Settings
    request: Request
    response: Response
    subprotocol: str | None
    extensions: Sequence[Extension]
    trailing_data: bytes
    observation: Observation = UNOBSERVED

    def websocket(self, supervisor: Supervisor | None) -> Websocket:
        """Return the connection."""
        websocket = Websocket(self.channel(supervisor))
        tell(self.observation.opened, websocket)
        return websocket

    def channel(self, supervisor: Supervisor | None) -> WireChannel:
        """Return what is below the connection."""
        codec = make_codec(self.role, self.extensions)
        return WireChannel(
            self.transport,
            traced(codec, self.role, self.request.remote_address),
            self.role,
            trailing_data=self.trailing_data,
            settings=self.settings,
            request=self.request,
            response=self.response,
            subprotocol=self.subprotocol,
            extensions=self.extensions,
            supervisor=supervisor,
            observation=self.observation,
        )


class Background:
    """A supervisor at work, in a task group that no exception of the user's passes through."""

    __slots__ = ("_task_group",)

    def __init__(self) -> None:
        self._task_group = anyio.create_task_group()

    async def start(self) -> Supervisor:
        """Return the supervisor, which works from here on."""
        await self._task_group.__aenter__()
        supervisor = Supervisor(self._task_group)
        self._task_group.start_soon(supervisor.run)
        return supervisor

    async def stop(self) -> None:
        """End its work; called by the task that has started it."""
        self._task_group.cancel_scope.cancel()
        await self._task_group.__aexit__(None, None, None)


class WebsocketScope:
    """The async context manager of the ``open_*`` functions.

    Awaiting it does nothing but return it, for ``async with await open_websocket(...)``.
    """

    def __init__(self, connect: Callable[[], Awaitable[Opened]]) -> None:
        self._connect = connect
        self._entered = False
        self._background: Background | None = None
        self._websocket: Websocket | None = None

    def __await__(self) -> Generator[None, None, WebsocketScope]:
        yield from ()
        return self

    async def __aenter__(self) -> Websocket:
        if self._entered:
            raise RuntimeError("this connection's scope was entered before")
        self._entered = True
        opened = await self._connect()
        self._background = Background()
        self._websocket = opened.websocket(await self._background.start())
        return self._websocket

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._background is not None
        assert self._websocket is not None
        try:
            await self._websocket.__aexit__(exc_type, exc, traceback)
        finally:
            await self._background.stop()
