"""An application sees the same, event for event, in process as over TCP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from asyncwebsockets import Deflate, Rejected, Settings, open_websocket_client

from .wire import ACCEPT, in_memory, on_tcp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .wire import Carrier

pytestmark = pytest.mark.anyio

SETTINGS = Settings(max_message_size=100_000, compression=Deflate(), ping_interval=None)

# What a carrier has to have of its own.
ADDRESSES = ("client", "server")


class Recorder:
    """An application that does as the client says, and writes down all that it sees."""

    def __init__(self) -> None:
        self.transcript: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        seen = {name: value for name, value in scope.items() if name not in ADDRESSES}
        # A client's key is its own.
        seen["headers"] = [pair for pair in scope["headers"] if pair[0] != b"sec-websocket-key"]
        self.transcript.append(seen)

        async def take() -> Any:
            message = await receive()
            self.transcript.append(dict(message))
            return message

        async def give(message: dict[str, Any]) -> None:
            try:
                await send(message)
            except Exception as exc:
                self.transcript.append((message["type"], type(exc), str(exc)))
            else:
                self.transcript.append((message["type"], "sent"))

        await take()
        match scope["path"]:
            case "/closes":
                await give({"type": "websocket.close"})
            case "/denies":
                start = {"type": "websocket.http.response.start", "status": 401}
                body = {"type": "websocket.http.response.body", "body": b"no"}
                await give({**start, "headers": [(b"x-why", b"because")]})
                await give({**body, "more_body": True})
                await give(body)
            case "/returns":
                return
            case "/raises":
                raise LookupError
            case _:
                await give({**ACCEPT, "subprotocol": "b", "headers": [(b"x-a", b"1")]})
        while (message := await take())["type"] == "websocket.receive":
            match message["text"]:
                case "close":
                    await give({"type": "websocket.close", "code": 4002, "reason": "bye"})
                case "crash":
                    raise LookupError
                case "return":
                    return
                case "nonsense":
                    await give({"type": "nonsense"})
                case _:
                    await give({**message, "type": "websocket.send"})
        await give({"type": "websocket.send", "text": "late"})
        await take()


async def converse(carrier: Carrier, target: str, messages: Sequence[str | bytes]) -> Any:
    """Return what the application saw, and what the client did."""
    app = Recorder()
    seen: list[Any] = []
    async with carrier(app, SETTINGS) as connect:
        try:
            async with open_websocket_client(
                await connect(), "localhost", target, [("X-A", "1")], ["a", "b"], settings=SETTINGS
            ) as ws:
                seen.append((ws.subprotocol, ws.response.header("x-a"), len(ws.extensions)))
                for message in messages:
                    await ws.send(message)
                seen += [event async for event in ws]
                seen.append((ws.close_code, ws.close_reason))
        except Rejected as exc:
            # The clock goes on between the two.
            headers = [(name, value) for name, value in exc.headers if name != b"Date"]
            assert len(headers) == len(exc.headers) - 1
            seen.append((exc.status, headers, exc.body))
    return app.transcript, seen


@pytest.mark.parametrize(
    ("target", "messages", "end"),
    [
        ("/a%20b/%C3%A9?q=%20", ["größer 😀", "", b"", bytes(100_000), "close"], 4002),
        ("/", ["nonsense", "still usable", "return"], 1000),
        ("/", ["crash"], 1011),
        ("/", ["x" * 100_001], 1009),
        ("/closes", [], 403),
        ("/denies", [], 401),
        ("/returns", [], 500),
        ("/raises", [], 500),
    ],
)
async def test_the_same_in_process_as_over_tcp(
    target: str, messages: Sequence[str | bytes], end: int
) -> None:
    over_tcp = await converse(on_tcp, target, messages)
    assert await converse(in_memory, target, messages) == over_tcp
    _, seen = over_tcp
    assert seen[-1][0] == end
