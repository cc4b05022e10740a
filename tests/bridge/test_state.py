"""Whatever an application sends, in whatever order: what it may, and what its client sees."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_bridge import ClientDisconnected, open_websocket_app
from asgi_bridge.messages import read_sent
from asgi_bridge.state import Phase, advance
from asyncwebsockets import Rejected
from asyncwebsockets.events import Message

# Values, none of which is of a key's own.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.tuples(st.binary(max_size=2), st.binary(max_size=2)), max_size=2),
    st.lists(st.lists(st.binary(max_size=2), max_size=3), max_size=2),
    st.dictionaries(st.binary(max_size=2), st.text(max_size=1), max_size=2),
    st.sampled_from([200, 204, 599, 1000, 1005, 4000]),
)
KEYS = (
    *("text", "bytes", "code", "reason", "headers"),
    *("subprotocol", "status", "body", "more_body", "unknown"),
)
TYPES = (
    *("websocket.accept", "websocket.send", "websocket.close"),
    *("websocket.http.response.start", "websocket.http.response.body"),
)


@given(
    st.fixed_dictionaries(
        {"type": st.one_of(st.sampled_from(TYPES), VALUES)},
        optional=dict.fromkeys(KEYS, VALUES),
    ),
    st.sampled_from([Phase.CONNECTING, Phase.DENYING, Phase.OPEN]),
)
def test_any_message_is_taken_or_said_to_be_wrong(message: dict[str, Any], phase: Phase) -> None:
    try:
        sent = read_sent(message)
    except (TypeError, ValueError) as exc:
        assert "expected " in str(exc)
        assert "got " in str(exc)
        return
    assert message["type"] in TYPES
    try:
        assert advance(phase, sent) in Phase
    except RuntimeError as exc:
        assert str(exc).startswith("expected websocket.")
        assert str(exc).endswith(f"got {message['type']}")


MESSAGES: dict[str, dict[str, Any]] = {
    "accept": {"type": "websocket.accept"},
    "data": {"type": "websocket.send", "text": "data"},
    "close": {"type": "websocket.close", "code": 4000},
    "start": {"type": "websocket.http.response.start", "status": 401},
    "more": {"type": "websocket.http.response.body", "body": b"more", "more_body": True},
    "last": {"type": "websocket.http.response.body", "body": b"last"},
    "nonsense": {"type": "nonsense"},
}

# From a phase, by what may be sent there.
MAY: dict[str, dict[str, str]] = {
    "connecting": {"accept": "open", "close": "rejected", "start": "denying"},
    "denying": {"more": "in the body", "last": "denied"},
    "in the body": {"more": "in the body", "last": "denied"},
    "open": {"data": "open", "close": "closed"},
}
# How the client's connection ends where the application returns in a phase: status or code.
ENDS = {
    "connecting": 500,
    "denying": 500,
    "in the body": 401,
    "denied": 401,
    "rejected": 403,
    "open": 1000,
    "closed": 4000,
}


def model(names: list[str]) -> tuple[list[type[Exception] | None], int, list[str | bytes]]:
    """Return what becomes of each message, how it ends, and what the client gets."""
    phase = "connecting"
    outcomes: list[type[Exception] | None] = []
    got: list[str | bytes] = []
    for name in names:
        outcome: type[Exception] | None = None
        if name == "nonsense":
            outcome = ValueError
        elif phase not in MAY:
            outcome = ClientDisconnected
        elif name not in MAY[phase]:
            outcome = RuntimeError
        else:
            phase = MAY[phase][name]
            if name in ("data", "more", "last"):
                data = MESSAGES[name]
                got.append(data.get("text") or data["body"])
        outcomes.append(outcome)
    return outcomes, ENDS[phase], got


async def play(names: list[str]) -> tuple[list[type[Exception] | None], int, list[str | bytes]]:
    outcomes: list[type[Exception] | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for name in names:
            try:
                await send(dict(MESSAGES[name]))
            except Exception as exc:
                outcomes.append(type(exc))
            else:
                outcomes.append(None)

    try:
        async with open_websocket_app(
            app, "/", lifespan="off", raise_app_exceptions=False
        ) as websocket:
            got = [event.data async for event in websocket if isinstance(event, Message)]
        assert websocket.close_code is not None
        return outcomes, websocket.close_code, list(got)
    except Rejected as exc:
        return outcomes, exc.status, [exc.body] if exc.body else []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_any_order_of_messages(backend: str) -> None:
    @settings(deadline=None)
    @given(st.lists(st.sampled_from(sorted(MESSAGES)), max_size=8))
    def check(names: list[str]) -> None:
        outcomes, end, got = model(names)
        if got and end < 1000:
            got = [b"".join(piece for piece in got if isinstance(piece, bytes))]
        assert anyio.run(play, names, backend=backend) == (outcomes, end, got)

    check()
