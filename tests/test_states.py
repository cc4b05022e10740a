"""A state machine: whatever two sides do in whatever order, both see the same."""

from __future__ import annotations

from collections import deque
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from asyncwebsockets import (
    ConnectionClosedError,
    ConnectionClosedLocally,
    ConnectionClosedOK,
    Deflate,
    Settings,
    Websocket,
    open_websocket_client,
    open_websocket_server,
)
from asyncwebsockets.events import Message, Ping

from .conftest import memory_pair

SIDES = st.sampled_from([0, 1])
DATA = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.binary())


class Conversation(RuleBasedStateMachine):
    """Two ends of a connection, and what each is to receive."""

    backend = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.manager = start_blocking_portal(self.backend)
        self.portal = self.manager.__enter__()
        self.ends: list[Websocket] = []
        # Messages on their way to each side, and the begun message of each.
        self.due: list[deque[Any]] = [deque(), deque()]
        self.begun: list[Any] = [None, None]
        self.closed: tuple[int, int, str] | None = None

    @initialize(deflate=st.booleans())
    def open(self, deflate: bool) -> None:
        options = Settings(compression=Deflate(threshold=0) if deflate else None)
        self.finished: Any = None
        ready = self.portal.call(anyio.Event)
        self.future = self.portal.start_task_soon(self.hold, options, ready)
        self.portal.call(ready.wait)

    async def hold(self, options: Settings, ready: anyio.Event) -> None:
        """Keep both scopes open, in a task of their own."""
        near, far = memory_pair(64)
        self.finished = anyio.Event()
        opened = anyio.Event()
        box: list[Websocket] = []

        async def serve() -> None:
            async with open_websocket_server(far, settings=options) as server:
                box.append(server)
                opened.set()
                await self.finished.wait()

        async with anyio.create_task_group() as tg:
            tg.start_soon(serve)
            async with open_websocket_client(near, "h", "/", settings=options) as client:
                await opened.wait()
                self.ends = [client, box[0]]
                ready.set()
                await self.finished.wait()

    def teardown(self) -> None:
        if self.ends:
            self.portal.call(self.finished.set)
            self.future.result(20)
        self.manager.__exit__(None, None, None)

    def call(self, function: Any, *args: Any) -> Any:
        async def limited() -> Any:
            with anyio.fail_after(20):
                return await function(*args)

        return self.portal.call(limited)

    @precondition(lambda self: self.closed is None)
    @rule(side=SIDES, data=DATA, final=st.booleans())
    def send(self, side: int, data: Any, final: bool) -> None:
        before = self.begun[side]
        if before is not None and type(before) is not type(data):
            with pytest.raises(TypeError):
                self.call(self.ends[side].send, data, final)
            return
        # Each call comes from a task of its own, so only whole messages have an owner here.
        if not final or before is not None:
            return
        self.call(self.ends[side].send, data)
        self.due[1 - side].append(data)

    @precondition(lambda self: self.closed is None)
    @rule(side=SIDES, pieces=st.lists(st.text("abcé", max_size=20), min_size=1, max_size=4))
    def send_in_pieces(self, side: int, pieces: list[str]) -> None:
        async def send() -> None:
            for piece in pieces[:-1]:
                await self.ends[side].send(piece, final=False)
            await self.ends[side].send(pieces[-1])

        self.call(send)
        self.due[1 - side].append("".join(pieces))

    @precondition(lambda self: self.closed is None)
    @rule(side=SIDES, payload=st.binary(max_size=125))
    def ping(self, side: int, payload: bytes) -> None:
        assert self.call(self.ends[side].ping, payload) >= 0

    @precondition(lambda self: self.closed is None)
    @rule(side=SIDES)
    def receive(self, side: int) -> None:
        if self.due[side]:
            while isinstance(event := self.call(self.ends[side].receive), Ping):
                pass
            assert isinstance(event, Message)
            assert event.data == self.due[side].popleft()

    @precondition(lambda self: self.closed is None)
    @rule(side=SIDES, code=st.sampled_from([1000, 1001, 1011, 3000, 4999]), reason=st.text("abé"))
    def close(self, side: int, code: int, reason: str) -> None:
        reason = reason[:60]
        self.call(self.ends[side].close, code, reason)
        self.closed = (side, code, reason)

    @precondition(lambda self: self.closed is not None)
    @rule(side=SIDES)
    def after_the_close(self, side: int) -> None:
        assert self.closed is not None
        closer, code, reason = self.closed
        end = self.ends[side]
        assert (end.close_code, end.close_reason) == (code, reason)
        if side == closer:
            for use in (end.receive, lambda: end.send("x"), end.ping):
                with pytest.raises(ConnectionClosedLocally):
                    self.call(use)
            return
        with pytest.raises(ConnectionClosedError):
            self.call(end.send, "x")
        while self.due[side]:
            event = self.call(end.receive)
            if isinstance(event, Message):
                assert event.data == self.due[side].popleft()
        with pytest.raises(ConnectionClosedOK):
            while True:
                assert isinstance(self.call(end.receive), Ping)


class TrioConversation(Conversation):
    """The same on trio."""

    backend = "trio"


LIMITS = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestOnAsyncio = Conversation.TestCase
TestOnAsyncio.settings = LIMITS
TestOnTrio = TrioConversation.TestCase
TestOnTrio.settings = LIMITS
