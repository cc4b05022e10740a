"""What a client does, and what both sides are to see, whatever carries the connection."""

from __future__ import annotations

import itertools
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint

from asyncwebsockets import ConnectionClosed, Rejected, Settings, open_websocket_client
from asyncwebsockets.events import Message

from ..conftest import cut
from ..frames import REQUEST, close_payload, frame, parse_frame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from anyio.abc import ByteStream

    from asyncwebsockets import Websocket

#: What one side has noted.
Note = dict[str, Any]

_keys = itertools.count()


class Raw:
    """A client that sends what it likes, once its handshake has been accepted."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = b""

    def request(self, target: str) -> bytes:
        """Return a request."""
        return REQUEST.replace(b"/path?q=1", target.encode())

    async def handshake(self, target: str, behind: bytes = b"") -> int:
        """Shake hands and return the status; `behind` goes out with the request."""
        await self._stream.send(self.request(target) + behind)
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += await self._stream.receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return int(head.split()[1])

    async def send(self, data: bytes) -> None:
        await self._stream.send(data)

    async def frame(self) -> tuple[int, bytes] | None:
        """Return the next frame's opcode and payload, None at the end of TCP."""
        while True:
            try:
                first, payload, self._buffer = parse_frame(self._buffer)
            except IndexError:
                try:
                    self._buffer += await self._stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return None
            else:
                return first & 0x0F, payload

    def reset(self) -> None:
        """Have TCP end with a reset when it is closed, where there is TCP."""
        sock = self._stream.extra(SocketAttribute.raw_socket, None)
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def end(self) -> Note:
        """Answer the server's Close, and say how it was."""
        while (came := await self.frame()) is not None:
            opcode, payload = came
            if opcode == 8:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                return {"close": code}
        return {"close": "none"}


@dataclass
class Client:
    """Connects to the handlers.

    Attributes:
        connect: opens a connection.
        root: what stands before the paths.
    """

    connect: Callable[[], Awaitable[ByteStream]]
    root: str = ""
    key: str = ""

    def target(self, path: str) -> str:
        self.key = self.key or f"{next(_keys)}"
        return f"{self.root}{path}?key={self.key}"

    @asynccontextmanager
    async def open(
        self, path: str, subprotocols: Sequence[str] = (), headers: Sequence[tuple[str, str]] = ()
    ) -> AsyncGenerator[Websocket, None]:
        async with open_websocket_client(
            await self.connect(),
            "localhost",
            self.target(path),
            list(headers),
            list(subprotocols),
            settings=Settings(max_message_size=None, ping_interval=None),
        ) as ws:
            yield ws

    @asynccontextmanager
    async def raw(self) -> AsyncGenerator[Raw, None]:
        stream = await self.connect()
        try:
            yield Raw(stream)
        finally:
            await cut(stream)

    async def record(self, name: str = "") -> Note:
        """Return what the handler has noted, once it has ended; or before, by a name."""
        note: Note
        async with self.open(f"/record{name}") as ws:
            note = await ws.receive_json()
        return note


async def drain(ws: Websocket) -> Note:
    """Receive to the end, and say what it was."""
    messages: list[Any] = []
    try:
        async for event in ws:
            assert isinstance(event, Message)
            messages.append(event.data)
    except ConnectionClosed as exc:
        return {"messages": messages, "close": exc.code, "clean": False}
    return {"messages": messages, "close": ws.close_code, "reason": ws.close_reason}


@dataclass(frozen=True)
class Scenario:
    """Attributes: what the client does, what it is to note, what the handler is to have noted."""

    act: Callable[[Client], Awaitable[Note]]
    client: Note
    handler: Note | None

    @property
    def name(self) -> str:
        return self.act.__name__


SCENARIOS: list[Scenario] = []


def scenario(
    client: Note, handler: Note | None
) -> Callable[[Callable[[Client], Awaitable[Note]]], None]:
    def add(act: Callable[[Client], Awaitable[Note]]) -> None:
        SCENARIOS.append(Scenario(act, client, handler))

    return add


def ended(code: int | None, reason: str | None = None, **more: Any) -> Note:
    return {"code": code, "reason": reason, **more}


@scenario({"echoes": True}, ended(4001, "over"))
async def the_client_closes_with_a_reason(client: Client) -> Note:
    messages: list[str | bytes] = ["a", "größer 😀", b"\x00\xff", "x" * 2**17]
    async with client.open("/echo") as ws:
        echoes = []
        for data in messages:
            await ws.send(data)
            event = await ws.receive()
            assert isinstance(event, Message)
            echoes.append(event.data)
        await ws.close(4001, "over")
    return {"echoes": echoes == messages}


@scenario({"echoes": ["", "not empty"]}, ended(1000))
async def messages_may_be_empty(client: Client) -> Note:
    async with client.open("/echo") as ws:
        await ws.send("")
        await ws.send("not empty")
        echoes = [await ws.receive_text()]
        while echoes[-1] != "not empty":
            echoes.append(await ws.receive_text())
        await ws.close(1000, "")
    return {"echoes": echoes}


@scenario({"close": 1000}, ended(1000))
async def the_client_closes_with_1000(client: Client) -> Note:
    async with client.open("/waits") as ws:
        await ws.close(1000, "")
    return {"close": ws.close_code}


@scenario({"close": 1001}, ended(1001))
async def the_client_goes_away(client: Client) -> Note:
    async with client.open("/waits") as ws:
        await ws.close(1001)
    return {"close": ws.close_code}


@scenario({"close": 1005}, ended(1005))
async def the_client_closes_without_a_code(client: Client) -> Note:
    async with client.raw() as raw:
        assert await raw.handshake(client.target("/waits")) == 101
        await raw.send(frame(8, masked=True))
        return await raw.end()


@scenario({}, ended(1006, raised="ConnectionClosedError"))
async def the_client_ends_tcp(client: Client) -> Note:
    async with client.raw() as raw:
        assert await raw.handshake(client.target("/lets_through")) == 101
    return {}


@scenario({}, {"filter": "cancelled"})
async def the_client_leaves_before_it_is_accepted(client: Client) -> Note:
    async with client.raw() as raw:
        await raw.send(raw.request(client.target("/holds")))
        await client.record("began")
    return {}


@scenario({}, ended(1006, raised="ConnectionClosedError"))
async def the_client_resets_tcp(client: Client) -> Note:
    async with client.raw() as raw:
        assert await raw.handshake(client.target("/lets_through")) == 101
        raw.reset()
    return {}


@scenario({"close": 1002}, ended(1002, raised="ConnectionClosedError"))
async def the_client_breaks_the_protocol(client: Client) -> Note:
    async with client.raw() as raw:
        assert await raw.handshake(client.target("/lets_through")) == 101
        await raw.send(frame(3, masked=True))
        return await raw.end()


@scenario({"close": 1007}, ended(1007, raised="ConnectionClosedError"))
async def the_client_sends_bad_utf8(client: Client) -> Note:
    async with client.raw() as raw:
        assert await raw.handshake(client.target("/lets_through")) == 101
        await raw.send(frame(1, b"\xff", masked=True))
        return await raw.end()


@scenario({}, ended(1009, raised="ConnectionClosedError"))
async def the_client_sends_too_much(client: Client) -> Note:
    async with client.open("/lets_through") as ws:
        # Not each server reads on until its Close is read, so it may be lost in a reset.
        with suppress(ConnectionClosed):
            await ws.send(bytes(2**24 + 1))
            await drain(ws)
    return {}


@scenario(
    {"received": "frags", "more": b"\x00\x01"}, {**ended(None), "received": "a" * 1000 + "b" * 1000}
)
async def both_send_fragments(client: Client) -> Note:
    async with client.open("/fragments") as ws:
        await ws.send("a" * 1000, final=False)
        await ws.send("b" * 1000)
        text = await ws.receive_text()
        return {"received": text.replace("ment", ""), "more": await ws.receive_bytes()}


@scenario({"messages": ["0", "1", "2"], "close": 1000, "reason": ""}, ended(None))
async def the_handler_returns(client: Client) -> Note:
    async with client.open("/push") as ws:
        return await drain(ws)


@scenario({"messages": [], "close": 4002, "reason": "bye"}, ended(4002, "bye"))
async def the_handler_closes_with_a_reason(client: Client) -> Note:
    async with client.open("/closes") as ws:
        return await drain(ws)


@scenario({"messages": [], "close": 1000, "reason": "Connection closed"}, ended(1000))
async def the_handler_closes_by_default(client: Client) -> Note:
    async with client.open("/closes_by_default") as ws:
        return await drain(ws)


@scenario({"messages": [], "close": 1011, "reason": ""}, ended(None, raised="RuntimeError"))
async def the_handler_crashes(client: Client) -> Note:
    async with client.open("/crashes") as ws:
        return await drain(ws)


@scenario({}, ended(1000, send="ConnectionClosedError"))
async def the_handler_sends_to_one_who_left(client: Client) -> Note:
    async with client.open("/sends_to_one_who_left") as ws:
        await ws.close(1000, "")
    return {}


@scenario(
    {"messages": [], "close": 1000, "reason": ""},
    ended(1000, send="ConnectionClosedLocally", receive="ConnectionClosedLocally"),
)
async def the_handler_uses_what_it_has_closed(client: Client) -> Note:
    async with client.open("/uses_after_close") as ws:
        return await drain(ws)


@scenario({"bytes": 64 * 2**18, "close": 1000}, ended(None))
async def the_client_reads_late(client: Client) -> Note:
    async with client.open("/floods") as ws:
        size = 0
        for _ in range(64):
            await checkpoint()
            size += len(await ws.receive_bytes())
        return {"bytes": size, "close": (await drain(ws))["close"]}


@scenario({"close": 1000}, {**ended(None), "received": 64 * 2**18})
async def the_handler_reads_late(client: Client) -> Note:
    async with client.open("/reads_late") as ws:
        await ws.receive_text()
        for _ in range(64):
            await ws.send(bytes(2**18))
        await ws.send(b"")
        return {"close": (await drain(ws))["close"]}


@scenario(
    {
        "target": "/a%20b/%C3%A9%2Fz?key=",
        "host": "localhost",
        "subprotocols": ["first", "second"],
        "subprotocol": "first",
        "fields": [["x-a", "1"], ["x-b", "é"], ["x-a", "2"]],
        "secure": False,
        "http_version": "1.1",
        "addresses": ["host, port", "host, port"],
        "chosen": "first",
    },
    ended(1000),
)
async def the_handler_describes_the_request(client: Client) -> Note:
    headers = [("X-A", "1"), ("X-B", "é".encode().decode("latin-1")), ("X-A", "2")]
    async with client.open("/a%20b/%C3%A9%2Fz", ["first", "second"], headers) as ws:
        note: Note = await ws.receive_json()
        note["target"] = note["target"].removesuffix(client.key)
        await ws.close(1000, "")
        return {**note, "chosen": ws.subprotocol}


@scenario({"subprotocol": "second", "close": 1000}, ended(1000))
async def the_filter_chooses_a_subprotocol(client: Client) -> Note:
    async with client.open("/second", ["first", "second"]) as ws:
        await ws.receive_json()
        await ws.close(1000, "")
        return {"subprotocol": ws.subprotocol, "close": ws.close_code}


@scenario(
    {"fields": [["set-cookie", "a=1"], ["set-cookie", "b=2"], ["x-why", "because"]]}, ended(1000)
)
async def the_filter_adds_header_fields(client: Client) -> Note:
    async with client.open("/fields") as ws:
        await ws.receive_json()
        await ws.close(1000, "")
        return {"fields": own(ws.response.headers)}


async def rejected(client: Client, path: str) -> Note:
    try:
        async with client.open(path):
            return {"status": 101}
    except Rejected as exc:
        return {
            "status": exc.status,
            "fields": own(exc.headers),
            "body": exc.body.decode("latin-1"),
        }


def own(headers: Sequence[tuple[bytes, bytes]]) -> list[list[str]]:
    fields = [[name.decode().lower(), value.decode()] for name, value in headers]
    return sorted(field for field in fields if field[0] in ("set-cookie", "x-why"))


FIELDS = [["set-cookie", "a=1"], ["set-cookie", "b=2"], ["x-why", "because"]]


@scenario({"status": 403, "fields": [], "body": ""}, None)
async def the_filter_says_false(client: Client) -> Note:
    return await rejected(client, "/false")


@scenario({"status": 401, "fields": FIELDS, "body": ""}, None)
async def the_filter_rejects_with_a_status(client: Client) -> Note:
    return await rejected(client, "/reject-connection")


@scenario({"status": 404, "fields": FIELDS, "body": "not here\xff"}, None)
async def the_filter_rejects_with_a_body(client: Client) -> Note:
    return await rejected(client, "/reject-bytes")


@scenario({"status": 503, "fields": FIELDS, "body": "not now"}, None)
async def the_filter_rejects_with_pieces(client: Client) -> Note:
    return await rejected(client, "/reject-pieces")


@scenario({"status": 204, "fields": [], "body": ""}, None)
async def the_filter_rejects_without_a_body(client: Client) -> Note:
    return await rejected(client, "/reject-empty")


@scenario({"status": 500}, None)
async def the_filter_chooses_what_was_not_offered(client: Client) -> Note:
    return {"status": (await rejected(client, "/unoffered"))["status"]}


@scenario({"status": 500}, None)
async def the_filter_raises(client: Client) -> Note:
    return {"status": (await rejected(client, "/raises"))["status"]}


@scenario({"status": 101, "echo": "early", "close": 1000}, ended(1000))
async def the_client_sends_before_it_is_accepted(client: Client) -> Note:
    async with client.raw() as raw:
        status = await raw.handshake(client.target("/echo"), frame(1, b"early", masked=True))
        if status != 101:
            return {"status": status}
        await raw.send(frame(1, b"late", masked=True))
        first = last = await raw.frame()
        while last != (1, b"late"):
            last = await raw.frame()
        await raw.send(frame(8, close_payload(1000), masked=True))
        assert first is not None
        return {"status": status, "echo": first[1].decode(), **await raw.end()}
