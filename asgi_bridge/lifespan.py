"""An application's lifespan (ASGI specification, lifespan protocol 2.0)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import anyio

from asyncwebsockets.server import stray_cancellations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from .messages import AsgiMessage

    # Scope, receive, send: frameworks have types of their own for these.
    Application = Callable[[Any, Any, Any], Awaitable[object]]

__all__ = ["Lifespan", "LifespanFailed"]

logger: logging.Logger = logging.getLogger("asyncwebsockets")


_ANSWERS = tuple(
    f"lifespan.{phase}.{result}"
    for phase in ("startup", "shutdown")
    for result in ("complete", "failed")
)


class LifespanFailed(Exception):
    """The application said that its startup or shutdown has failed."""


class Lifespan:
    """Runs an application's lifespan beside its connections, on the same event loop.

    Args:
        app: the application.
        mode: "auto" goes on without, if the application raises on it; "on" has that exception
            raised; "off" does not ask.
    """

    def __init__(self, app: Application, mode: Literal["auto", "on", "off"]) -> None:
        if mode not in ("auto", "on", "off"):
            raise ValueError(f'expected lifespan "auto", "on" or "off", got {mode!r}')
        self._app = app
        self._mode = mode
        self._to_app, self._app_receives = anyio.create_memory_object_stream[Any](2)
        # Set when the application has answered or ended.
        self._answered = anyio.Event()
        self._answer: AsgiMessage | None = None
        self._asked = "lifespan.startup"
        self._ended = anyio.Event()
        self._error: Exception | None = None
        self._state: dict[str, Any] = {}
        self._supported = False

    @property
    def state(self) -> dict[str, Any] | None:
        """What the application keeps for its connections; None if it has no lifespan."""
        return self._state if self._supported else None

    async def startup(self, tasks: TaskGroup) -> None:
        """Start the application, and wait until it is ready.

        Raises:
            LifespanFailed: the application says that it is not.
            Exception: the application's own, in mode "on".
        """
        if self._mode == "off":
            return
        tasks.start_soon(self._run)
        answer = await self._ask("lifespan.startup")
        if answer is None and self._error is not None:
            if self._mode == "on":
                raise self._error
            logger.debug("the application has no lifespan: %s", self._error)
            return
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            raise LifespanFailed(answer.get("message") or "the startup has failed")
        self._supported = True

    async def shutdown(self) -> None:
        """Tell the application that all is over, and wait until it is done.

        Raises:
            LifespanFailed: the application says that its shutdown has failed.
            Exception: the application's own.
        """
        if self._supported and not self._ended.is_set():
            answer = await self._ask("lifespan.shutdown")
            if answer is None and self._error is not None:
                raise self._error
            if answer is not None and answer["type"] == "lifespan.shutdown.failed":
                raise LifespanFailed(answer.get("message") or "the shutdown has failed")
        self.close()

    def close(self) -> None:
        """Let go of what it holds."""
        self._to_app.close()
        self._app_receives.close()

    async def _ask(self, kind: str) -> AsgiMessage | None:
        """Return the application's answer, None if it has ended without one."""
        self._asked, self._answer, self._answered = kind, None, anyio.Event()
        await self._to_app.send({"type": kind})
        await self._answered.wait()
        return self._answer

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self._state,
        }
        try:
            with stray_cancellations:
                await self._app(scope, self._app_receives.receive, self._send)
        except Exception as exc:
            self._error = exc
            # Frameworks raise what they have said already.
            if self._answer is not None and not self._answer["type"].endswith(".failed"):
                logger.error("the application's lifespan has failed", exc_info=exc)
        finally:
            self._ended.set()
            self._answered.set()

    async def _send(self, message: AsgiMessage) -> None:
        if not isinstance(message, Mapping):
            raise TypeError(f"expected a message as a dict, got {message!r:.100}")
        kind = message.get("type")
        if kind not in _ANSWERS:
            raise ValueError(f"expected one of {', '.join(_ANSWERS)}, got {kind!r}")
        # What nobody asks for any more is let pass: frameworks say that they have failed when
        # they are cancelled.
        if not self._answered.is_set():
            if not kind.startswith(self._asked):
                raise ValueError(f"expected an answer to {self._asked}, got {kind!r}")
            self._answer = message
            self._answered.set()
