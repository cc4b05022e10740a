"""Handlers and filters that behave the same on a socket and under any ASGI server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import anyio
from anyio.lowlevel import checkpoint

from asyncwebsockets import ConnectionClosed, Reject
from asyncwebsockets.events import AcceptConnection, Message, RejectConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from asyncwebsockets import Request, Websocket

    Record = dict[str, Any]


class Records:
    """What handlers have noted, for clients that ask for it afterwards."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._changed = anyio.Event()

    def put(self, key: str, record: Record) -> None:
        self._records[key] = record
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def take(self, key: str) -> Record:
        while key not in self._records:
            await self._changed.wait()
        return self._records.pop(key)


async def echo(ws: Websocket, record: Record) -> None:
    async for event in ws:
        if isinstance(event, Message):
            await ws.send(event.data)


async def push(ws: Websocket, record: Record) -> None:
    for number in range(3):
        await ws.send(f"{number}")


async def fragments(ws: Websocket, record: Record) -> None:
    record["received"] = await ws.receive_text()
    await ws.send("frag", final=False)
    await ws.send("ment", final=False)
    await ws.send("s")
    async with ws.message() as message:
        await message.send(b"\x00")
        await message.send(b"\x01")


async def closes(ws: Websocket, record: Record) -> None:
    await ws.close(4002, "bye")


async def closes_by_default(ws: Websocket, record: Record) -> None:
    await ws.close()


async def crashes(ws: Websocket, record: Record) -> None:
    raise RuntimeError("the handler's own")


async def waits(ws: Websocket, record: Record) -> None:
    await ws.wait_closed()


async def lets_through(ws: Websocket, record: Record) -> None:
    while True:
        await ws.receive()


async def sends_to_one_who_left(ws: Websocket, record: Record) -> None:
    await ws.wait_closed()
    try:
        await ws.send("too late")
    except ConnectionClosed as exc:
        record["send"] = type(exc).__name__


async def uses_after_close(ws: Websocket, record: Record) -> None:
    await ws.close(1000, "")
    for name, call in (("send", ws.send("late")), ("receive", ws.receive())):
        try:
            await call
        except ConnectionClosed as exc:
            record[name] = type(exc).__name__


async def describes(ws: Websocket, record: Record) -> None:
    request = ws.request
    await ws.send_json(
        {
            "target": request.target,
            "host": request.host.partition(":")[0],
            "subprotocols": request.subprotocols,
            "subprotocol": ws.subprotocol,
            "fields": [
                [name.decode().lower(), value.decode()]
                for name, value in request.headers
                if name.lower().startswith(b"x-")
            ],
            "secure": request.secure,
            "http_version": request.http_version,
            "addresses": [
                "host, port" if isinstance(address, tuple) else type(address).__name__
                for address in (ws.local_address, ws.remote_address)
            ],
        }
    )
    await ws.wait_closed()


async def floods(ws: Websocket, record: Record) -> None:
    for _ in range(64):
        await ws.send(bytes(2**18))


async def reads_late(ws: Websocket, record: Record) -> None:
    await ws.send("not reading")
    # A pong says that its client has sent all; here that is a message's business.
    size = 0
    while True:
        data = await ws.receive_bytes()
        if not data:
            break
        size += len(data)
        await checkpoint()
    record["received"] = size


HANDLERS: dict[str, Callable[[Websocket, Record], Awaitable[None]]] = {
    f"/{function.__name__}": function
    for function in (
        echo,
        push,
        fragments,
        closes,
        closes_by_default,
        crashes,
        waits,
        lets_through,
        sends_to_one_who_left,
        uses_after_close,
        describes,
        floods,
        reads_late,
    )
}


async def _pieces() -> AsyncIterator[bytes]:
    yield b"not "
    yield b"now"


FIELDS = [(b"X-Why", b"because"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]

DECISIONS: dict[str, Callable[[], object]] = {
    "/false": lambda: False,
    "/reject-connection": lambda: RejectConnection(status_code=401, headers=FIELDS),
    "/reject-bytes": lambda: Reject(404, FIELDS, b"not here\xff"),
    "/reject-pieces": lambda: Reject(503, FIELDS, _pieces()),
    "/reject-empty": lambda: Reject(204),
    "/second": lambda: "second",
    "/fields": lambda: AcceptConnection(extra_headers=FIELDS),
    "/unoffered": lambda: "unoffered",
    "/raises": lambda: 1 // 0,
}


def key_of(request: Request) -> str:
    return parse_qs(request.query).get("key", [""])[0]


async def hold(key: str) -> None:
    """Wait until the client has left."""
    deadline = anyio.current_effective_deadline()
    records.put(f"{key} began", {})
    try:
        await anyio.sleep_forever()
    except BaseException as exc:
        cancelled = isinstance(exc, anyio.get_cancelled_exc_class())
        how = "cancelled" if anyio.current_time() < deadline else "timed out"
        records.put(key, {"filter": how if cancelled else repr(exc)})
        raise


async def filter(request: Request) -> object:
    await checkpoint()
    if request.path == "/holds":
        await hold(key_of(request))
    decision = DECISIONS.get(request.path)
    return True if decision is None else decision()


records = Records()


async def handle(ws: Websocket) -> None:
    """Run the handler that the path names, and keep what it has noted."""
    key = key_of(ws.request)
    if ws.request.path.startswith("/record"):
        name = ws.request.path.removeprefix("/record")
        await ws.send_json(await records.take(f"{key} {name}" if name else key))
        return
    record: Record = {}
    try:
        await HANDLERS.get(ws.request.path, describes)(ws, record)
    except BaseException as exc:
        record["raised"] = type(exc).__name__
        raise
    finally:
        record["code"] = ws.close_code
        record["reason"] = ws.close_reason if ws.close_code in (4001, 4002) else None
        records.put(key, record)
