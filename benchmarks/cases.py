"""What is raced, against what, and what is to come of it: data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

PURE = {"ASYNCWEBSOCKETS_CODEC": "pure"}


@dataclass(frozen=True)
class Peer:
    """One way to serve or to connect, as a module of `servers` or `clients`."""

    title: str
    module: str
    variant: str = ""
    mounted: bool = False
    pure: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is this library, be it in another's server."""
        return self.module in ("with_ours", "with_host") or self.mounted


PEERS = {
    "ours": Peer("asyncwebsockets", "with_ours"),
    "ours-pure": Peer("asyncwebsockets, without the native codec", "with_ours", pure=True),
    "ours-stream": Peer("asyncwebsockets, on a `SocketStream` handed in", "with_ours", "stream"),
    "ours-as-aiohttp": Peer("asyncwebsockets, set as aiohttp", "with_ours", "as-aiohttp"),
    "ours-as-websockets": Peer("asyncwebsockets, set as websockets", "with_ours", "as-websockets"),
    "picows": Peer("picows, callbacks", "with_picows"),
    "picows.websockets": Peer("picows.websockets", "with_websockets", "picows"),
    "aiohttp": Peer("aiohttp", "with_aiohttp"),
    "websockets": Peer("websockets", "with_websockets"),
    "trio-websocket": Peer("trio-websocket", "with_trio_websocket"),
    "httpx-ws": Peer("httpx-ws", "with_httpx_ws"),
    "nothing": Peer("no library, a loop of system calls", "with_nothing"),
    "nothing-64": Peer("no library, a loop of system calls", "with_nothing", "64"),
    "host": Peer("asgi_bridge's host", "with_host"),
    "uvicorn-sansio": Peer("uvicorn, websockets-sansio", "with_uvicorn", "websockets-sansio"),
    "uvicorn-wsproto": Peer("uvicorn, wsproto", "with_uvicorn", "wsproto"),
    "hypercorn": Peer("hypercorn", "with_hypercorn"),
    "granian": Peer("granian", "with_granian"),
    "uvicorn-sansio+ours": Peer(
        "our `WebsocketApp` in uvicorn, websockets-sansio",
        "with_uvicorn",
        "websockets-sansio",
        mounted=True,
    ),
    "hypercorn+ours": Peer("our `WebsocketApp` in hypercorn", "with_hypercorn", mounted=True),
    "granian+ours": Peer("our `WebsocketApp` in granian", "with_granian", mounted=True),
}


@dataclass(frozen=True)
class Entry:
    """A peer on a loop, as ``peer:loop``."""

    name: str

    @property
    def peer(self) -> Peer:
        """Whom it is about."""
        return PEERS[self.name.partition(":")[0]]

    @property
    def loop(self) -> str:
        """Where it runs, "none" for no event loop."""
        return self.name.partition(":")[2]


@dataclass(frozen=True)
class Case:
    """One race.

    Attributes:
        name: for the command line.
        title: for the page.
        entries: what is compared, each a peer on a loop.
        kind: what is done; "echo" and "broadcast" measure a server, "client" a client.
        connections: how many are open, or opened at a time.
        in_flight: messages sent at a time on each.
        size: bytes of a message.
        tls: with TLS.
        deflate: with permessage-deflate, and how.
        most_rounds: where more would bring nothing.
        note: for the page.
    """

    name: str
    title: str
    entries: Sequence[Entry]
    kind: Literal["echo", "client", "handshakes", "memory", "broadcast"] = "echo"
    connections: int = 1
    in_flight: int = 1
    size: int = 128
    tls: bool = False
    deflate: Literal["", "takeover", "no takeover"] = ""
    most_rounds: int | None = None
    note: str = ""


def _entries(**loops: str) -> list[Entry]:
    return [Entry(f"{peer}:{loop}") for loop, peers in loops.items() for peer in peers.split()]


_ASYNCIO = "picows picows.websockets aiohttp websockets"
_TRIO = "websockets trio-websocket"
_SERVERS = _entries(
    uvloop=f"ours ours-pure {_ASYNCIO}",
    asyncio=f"ours ours-pure ours-stream {_ASYNCIO}",
    trio=f"ours ours-pure ours-stream {_TRIO}",
)
_PLAIN = _entries(uvloop=f"ours {_ASYNCIO}", asyncio=f"ours {_ASYNCIO}", trio=f"ours {_TRIO}")
_FLOOR = _entries(none="nothing")
_CLIENTS = _entries(
    uvloop=f"ours {_ASYNCIO}", asyncio=f"ours {_ASYNCIO} httpx-ws", trio=f"ours {_TRIO} httpx-ws"
)
_RESETTING = _entries(
    uvloop="ours-as-aiohttp aiohttp ours-as-websockets websockets",
    trio="ours-as-websockets websockets",
)
_DEFLATE = [*_RESETTING[:4], *_entries(uvloop="ours picows.websockets"), *_RESETTING[4:]]
_ASGI = _entries(
    uvloop="host uvicorn-sansio uvicorn-wsproto hypercorn granian"
    " uvicorn-sansio+ours hypercorn+ours granian+ours",
    asyncio="host uvicorn-sansio hypercorn",
    trio="host hypercorn hypercorn+ours",
)
_FLIGHT = "The latency is that of 64 messages sent at once, to the last answer."
_DEFLATE_NOTE = (
    "Each of ours has the level, the window and the memory level of the peer it is named after"
)

CASES = [
    Case("ping-pong", "One connection, one message in flight, 128 B", [*_SERVERS, *_FLOOR]),
    Case(
        "100x1",
        "100 connections, one message in flight, 128 B",
        [*_SERVERS, *_FLOOR],
        connections=100,
    ),
    Case(
        "1x64",
        "One connection, 64 messages in flight, 128 B",
        [*_SERVERS, *_entries(none="nothing-64")],
        in_flight=64,
        note=_FLIGHT,
    ),
    Case("16k", "10 connections, 16 KiB", _PLAIN, connections=10, size=1 << 14),
    Case("1m", "Two connections, 1 MiB", _PLAIN, connections=2, size=1 << 20),
    Case("tls-16k", "TLS, 10 connections, 16 KiB", _PLAIN, connections=10, size=1 << 14, tls=True),
    Case("tls-100x1", "TLS, 100 connections, 128 B", _PLAIN, connections=100, tls=True),
    Case(
        "deflate",
        "permessage-deflate, 100 connections, JSON of 2 KiB",
        _DEFLATE,
        connections=100,
        size=2048,
        deflate="takeover",
        note=f"{_DEFLATE_NOTE}; the plain one has the defaults, which are picows.websockets' too.",
    ),
    Case(
        "deflate-reset",
        "permessage-deflate without context takeover, 100 connections, JSON of 2 KiB",
        _RESETTING,
        connections=100,
        size=2048,
        deflate="no takeover",
        note=f"{_DEFLATE_NOTE}. picows.websockets keeps its context even if asked not to.",
    ),
    Case(
        "client-50x1",
        "Clients: 50 connections, one message in flight, 128 B",
        _CLIENTS,
        "client",
        connections=50,
        note="The latency is the client's, from a message to the one it sends next.",
    ),
    Case(
        "client-1x64",
        "Clients: one connection, 64 messages in flight, 128 B",
        _CLIENTS,
        "client",
        in_flight=64,
        note="The latency is the client's, from 64 messages to the last of the next 64.",
    ),
    Case(
        "handshakes",
        "Handshakes, 16 at a time",
        _PLAIN,
        "handshakes",
        connections=16,
        note="A connection opened, upgraded and closed, with the closing handshake; the latency is"
        " from TCP's connect to the answer.",
    ),
    Case(
        "memory",
        "Memory of an idle connection, at 5,000",
        _PLAIN,
        "memory",
        connections=5000,
        most_rounds=1,
        note="Private memory of the server, with a keepalive of 20 s where the library has one.",
    ),
    Case(
        "broadcast",
        "One message to 1,000 subscribers, 128 B",
        [*_PLAIN, *_FLOOR],
        "broadcast",
        connections=1000,
        note="A message is a delivery; the latency is to the last of the 1,000. Ours,"
        " websockets and picows.websockets use their `broadcast`, the others send in a loop.",
    ),
    Case("asgi-100x1", "ASGI: 100 connections, 128 B", _ASGI, connections=100),
    Case(
        "asgi-1x64",
        "ASGI: one connection, 64 messages in flight, 128 B",
        _ASGI,
        in_flight=64,
        note=_FLIGHT,
    ),
]


@dataclass(frozen=True)
class Target:
    """What one of ours is to cost, as shares of what others cost in the same race.

    Attributes:
        title: for the page.
        case: the case's name.
        ours: the entry.
        must: shares of entries.
        aim: shares that would be better still.
        most: bytes that must not be exceeded, and those aimed at, where it is memory.
    """

    title: str
    case: str
    ours: str
    must: Sequence[tuple[str, float]] = ()
    aim: Sequence[tuple[str, float]] = ()
    most: tuple[int, int] | None = None


TARGETS = [
    Target(
        "100 × 1, 128 B, uvloop",
        "100x1",
        "ours:uvloop",
        [("aiohttp:uvloop", 0.75), ("picows:uvloop", 1.10)],
        [("picows:uvloop", 1)],
    ),
    Target(
        "100 × 1, 128 B, asyncio",
        "100x1",
        "ours:asyncio",
        [("aiohttp:asyncio", 0.85), ("websockets:asyncio", 0.60)],
        [("picows:asyncio", 1)],
    ),
    Target(
        "100 × 1, 128 B, trio",
        "100x1",
        "ours:trio",
        [("websockets:trio", 0.40)],
        [("websockets:trio", 0.33)],
    ),
    *(
        Target(
            f"64 in flight, 128 B, {loop}",
            "1x64",
            f"ours:{loop}",
            [(f"picows:{loop}", 0.35)],
            [(f"picows:{loop}", 0.20)],
        )
        for loop in ("uvloop", "asyncio")
    ),
    Target("64 in flight, 128 B, trio", "1x64", "ours:trio", [("websockets:trio", 0.10)]),
    *(
        Target(
            f"{title}, uvloop",
            case,
            "ours:uvloop",
            [("picows:uvloop", 1.05)],
            [("picows:uvloop", 1)],
        )
        for title, case in (("16 KiB", "16k"), ("1 MiB", "1m"))
    ),
    Target(
        "a `SocketStream` handed in, 100 × 1, asyncio",
        "100x1",
        "ours-stream:asyncio",
        [("websockets:asyncio", 1)],
        [("ours:asyncio", 1.05)],
    ),
    *(
        target
        for title, case in (("TLS, 16 KiB × 10", "tls-16k"), ("TLS, 128 B × 100", "tls-100x1"))
        for target in (
            Target(
                f"{title}, uvloop",
                case,
                "ours:uvloop",
                [("aiohttp:uvloop", 1)],
                [("picows:uvloop", 1)],
            ),
            Target(
                f"{title}, trio",
                case,
                "ours:trio",
                [("websockets:trio", 0.5)],
                [("websockets:trio", 0.33)],
            ),
        )
    ),
    *(
        Target(
            f"{title}, uvloop",
            case,
            f"ours-as-{peer}:uvloop",
            [(f"{peer}:uvloop", 1)],
            [(f"{peer}:uvloop", 0.8)],
        )
        for title, case in (
            ("permessage-deflate", "deflate"),
            ("permessage-deflate without context takeover", "deflate-reset"),
        )
        for peer in ("aiohttp", "websockets")
    ),
    *(
        Target(
            f"client, {title}, uvloop",
            case,
            "ours:uvloop",
            [("aiohttp:uvloop", 1)],
            [("picows:uvloop", 1)],
        )
        for title, case in (("50 × 1", "client-50x1"), ("1 × 64", "client-1x64"))
    ),
    Target(
        "one message to 1,000 subscribers, uvloop",
        "broadcast",
        "ours:uvloop",
        [("websockets:uvloop", 1)],
        [("picows:uvloop", 1)],
    ),
    Target(
        "ASGI echo through our host, uvloop",
        "asgi-100x1",
        "host:uvloop",
        [("uvicorn-sansio:uvloop", 0.65), ("hypercorn:uvloop", 0.35)],
        [("uvicorn-sansio:uvloop", 0.5)],
    ),
    Target("memory of an idle connection, asyncio", "memory", "ours:asyncio", most=(10240, 6144)),
    Target(
        "handshake, uvloop",
        "handshakes",
        "ours:uvloop",
        [("aiohttp:uvloop", 1)],
        [("aiohttp:uvloop", 0.8)],
    ),
    Target(
        "without the native codec, 100 × 1, asyncio",
        "100x1",
        "ours-pure:asyncio",
        [("websockets:asyncio", 1.8)],
        [("websockets:asyncio", 1.2)],
    ),
]
