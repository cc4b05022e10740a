"""The client by URL, and everything about a request before it is sent."""

from __future__ import annotations

import base64
import math
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import (
    HandshakeError,
    Rejected,
    Request,
    Settings,
    WebsocketError,
    create_websocket,
    create_websocket_client,
    open_websocket,
    open_websocket_client,
    serve,
)
from asyncwebsockets._dial import Dialer
from asyncwebsockets._url import format_host, parse_url

from .conftest import memory_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trustme

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("codec")]


@asynccontextmanager
async def recording(
    host: str = "127.0.0.1", **kwargs: Any
) -> AsyncIterator[tuple[int, list[Request]]]:
    """Run a server that keeps its requests; give its port and them."""
    requests: list[Request] = []

    async def filter(request: Request) -> bool:
        requests.append(request)
        return True

    async def handler(ws: Any) -> None:
        await ws.wait_closed()

    async with anyio.create_task_group() as tg:

        async def run(task_status: Any) -> None:
            await serve(handler, host, 0, filter=filter, task_status=task_status, **kwargs)

        server = await tg.start(run)
        yield server.addresses[0][1], requests
        await server.close()


async def test_userinfo_becomes_basic_authentication() -> None:
    async with recording() as (port, requests):
        async with open_websocket(f"ws://us%40er:p%C3%A9%3Ass@127.0.0.1:{port}/"):
            pass
        expected = base64.b64encode("us@er:pé:ss".encode()).decode()
        assert requests[0].header("authorization") == f"Basic {expected}"
        async with open_websocket(
            f"ws://user:pass@127.0.0.1:{port}/", headers={"authorization": "Bearer x"}
        ):
            pass
        assert requests[1].header("Authorization") == "Bearer x"


async def test_ipv6_literals() -> None:
    if not socket.has_ipv6:
        pytest.fail("this machine has no IPv6, which the test needs on loopback")
    async with recording("::1") as (port, requests):
        async with open_websocket(f"ws://[::1]:{port}/x") as ws:
            assert ws.remote_address == ("::1", port)
        assert requests[0].host == f"[::1]:{port}"


async def test_a_name_is_tried_at_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens on ::1 at that port, and the connection is made all the same.
    async with recording() as (port, _), open_websocket(f"ws://localhost:{port}/") as ws:
        assert ws.remote_address == ("127.0.0.1", port)


async def test_tls_verifies_the_certificate_and_the_name(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, authority: trustme.CA
) -> None:
    async with recording(ssl=server_tls) as (port, requests):
        async with open_websocket(f"wss://localhost:{port}/", ssl=client_tls):
            pass
        assert requests[0].secure
        for context in (None, True):
            with pytest.raises(ssl.SSLCertVerificationError):
                async with open_websocket(f"wss://localhost:{port}/", ssl=context):
                    pytest.fail("an unknown authority was trusted")
    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(other)
    async with recording(ssl=other) as (port, _):
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch|not valid for"):
            await create_websocket(f"wss://localhost:{port}/", ssl=client_tls)


async def test_tls_to_a_server_without_it_and_the_other_way_round(
    client_tls: ssl.SSLContext, server_tls: ssl.SSLContext
) -> None:
    async with recording() as (port, _):
        with pytest.raises((ssl.SSLError, HandshakeError)):
            await create_websocket(f"wss://localhost:{port}/", ssl=client_tls)
    async with recording(ssl=server_tls) as (port, _):
        with pytest.raises(HandshakeError):
            await create_websocket(f"ws://localhost:{port}/")


async def test_errors_of_name_resolution_and_tcp_pass_through() -> None:
    with pytest.raises(OSError) as refused:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        await create_websocket(f"ws://127.0.0.1:{port}/")
    assert not isinstance(refused.value, WebsocketError)
    with pytest.raises(socket.gaierror):
        await create_websocket("ws://name.invalid/")


BAD_URLS = [
    ("http://host/", "scheme ws or wss"),
    ("host/", "scheme ws or wss"),
    ("ws:///path", "with a host"),
    ("ws://host/#part", "without a fragment"),
    ("ws://host/#", "without a fragment"),
    ("ws://ho st/", "spaces"),
    ("ws://host/a\r\nb", "control characters"),
    ("ws://host:99999/", "port"),
    ("ws://[::1/", "."),
    ("ws://[zz]/", "."),
    ("ws://exa\u2028mple/", "host name"),
]


@pytest.mark.parametrize(("url", "match"), BAD_URLS)
async def test_a_bad_url_is_a_value_error(url: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        await create_websocket(url)


def test_nothing_shows_the_secrets_of_a_url(anyio_backend: object) -> None:
    url = "wss://user:p4ssw0rd@host/"
    authorization = parse_url(url).authorization
    assert authorization is not None
    assert authorization not in repr(parse_url(url))
    dialer = Dialer(url, {"X": "p4ssw0rd"}, None, None, Settings(), None, {"a": "p4ssw0rd"}, None)
    assert "p4ssw0rd" not in repr(dialer.connect)


async def test_ssl_goes_with_wss_only(client_tls: ssl.SSLContext) -> None:
    for value in (client_tls, True, False):
        with pytest.raises(ValueError, match="wss"):
            await create_websocket("ws://127.0.0.1/", ssl=value)
    with pytest.raises(ValueError, match="got False"):
        await create_websocket("wss://127.0.0.1/", ssl=False)


@pytest.mark.parametrize(
    ("url", "secure", "host", "port", "target", "header"),
    [
        ("ws://example.com", False, "example.com", 80, "/", "example.com"),
        ("ws://EXAMPLE.com:80/", False, "example.com", 80, "/", "example.com"),
        ("wss://example.com:443/", True, "example.com", 443, "/", "example.com"),
        ("wss://example.com:80/", True, "example.com", 80, "/", "example.com:80"),
        ("ws://h:8080/a/b?c=d&e", False, "h", 8080, "/a/b?c=d&e", "h:8080"),
        ("ws://h?q", False, "h", 80, "/?q", "h"),
        ("ws://h/%20é", False, "h", 80, "/%20%C3%A9", "h"),
        ("ws://bücher.example/", False, "xn--bcher-kva.example", 80, "/", "xn--bcher-kva.example"),
        ("ws://[::1]:1/", False, "::1", 1, "/", "[::1]:1"),
        ("wss://[fe80::1%25eth0]/", True, "fe80::1%eth0", 443, "/", "[fe80::1]"),
    ],
)
def test_parts_of_a_url(
    url: str,
    secure: bool,
    host: str,
    port: int,
    target: str,
    header: str,
    anyio_backend: object,
) -> None:
    parts = parse_url(url)
    assert (parts.secure, parts.host, parts.port) == (secure, host, port)
    assert (parts.target, parts.host_header) == (target, header)


def test_format_host(anyio_backend: object) -> None:
    assert format_host("h", 80, secure=False) == "h"
    assert format_host("h", 80, secure=True) == "h:80"
    assert format_host("h", None, secure=True) == "h"


async def sent_request(addr: Any = ("h", 80), path: str = "/", **kwargs: Any) -> list[str]:
    """Return the lines of the request that a client sends."""
    near, far = memory_pair()
    lines: list[str] = []

    async def answer() -> None:
        lines.extend((await far.receive()).decode("latin-1").split("\r\n")[:-2])
        await far.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with anyio.create_task_group() as tg:
        tg.start_soon(answer)
        with pytest.raises(Rejected):
            await create_websocket_client(near, addr, path, **kwargs)
    return lines


@pytest.mark.parametrize(
    ("addr", "host"),
    [
        (("example.com", 80), "example.com"),
        (("example.com", 81), "example.com:81"),
        (("::1", 80), "[::1]"),
        (("bücher.example", 1), "xn--bcher-kva.example:1"),
        ("as it is:80", "as it is:80"),
    ],
)
async def test_the_host_header_field(addr: Any, host: str) -> None:
    lines = await sent_request(addr, "/a?b")
    assert lines[0] == "GET /a?b HTTP/1.1"
    assert [line for line in lines if line.startswith("Host: ")] == [f"Host: {host}"]
    lines = await sent_request(addr, headers=[("host", "mine")])
    assert [line for line in lines if line.startswith("Host: ")] == ["Host: mine"]


@pytest.mark.parametrize(
    "headers",
    [
        {"A": "1", "B": "2"},
        [("A", "1"), (b"B", b"2")],
        {b"A": b"1", b"B": b"2"},
        (("A", "1"), ("B", " 2 ")),
    ],
)
async def test_headers_of_every_kind(headers: Any) -> None:
    lines = await sent_request(headers=headers, subprotocols=("x", "y"))
    assert lines[-2:] == ["A: 1", "B: 2"]
    assert "Sec-WebSocket-Protocol: x, y" in lines


BAD_HEADERS: list[Any] = [
    [("X", "a\r\nY: b")],
    [("X", "a\0")],
    [("X\r\nY", "a")],
    [("", "a")],
    [("X Y", "a")],
    [("Upgrade", "h2c")],
    [("connection", "close")],
    [("Sec-WebSocket-Key", "x")],
    [("sec-websocket-protocol", "x")],
    [("Sec-WebSocket-Extensions", "x")],
    [("Sec-WebSocket-Version", "8")],
    [("Content-Length", "5")],
    [("Transfer-Encoding", "chunked")],
    [("Host", "a"), ("Host", "b")],
    [("X", "\u20ac")],
]


@pytest.mark.parametrize("headers", BAD_HEADERS)
async def test_bad_headers_are_a_value_error_and_close_the_stream(headers: Any) -> None:
    near, far = memory_pair()
    with pytest.raises(ValueError):
        await create_websocket_client(near, "h", "/", headers)
    with pytest.raises(anyio.EndOfStream):
        await far.receive()
    with pytest.raises(ValueError):
        await create_websocket("ws://127.0.0.1:1/", headers=headers)


async def test_other_bad_arguments() -> None:
    for subprotocols in (["a b"], [""], ["a", "a"], ["é"]):
        with pytest.raises(ValueError):
            await create_websocket_client(memory_pair()[0], "h", "/", subprotocols=subprotocols)
    with pytest.raises(TypeError):
        await create_websocket_client(memory_pair()[0], "h", "/", subprotocols="chat")
    with pytest.raises(TypeError):
        await create_websocket_client(memory_pair()[0], "h", "/", [("a", 1)])  # type: ignore[list-item]
    for path in ("", "no-slash", "/a b", "/é", "/a#b", "/a\r\nb"):
        with pytest.raises(ValueError):
            await create_websocket_client(memory_pair()[0], "h", path)
    for host in ("a\r\nb", "é"):
        with pytest.raises(ValueError):
            await create_websocket_client(memory_pair()[0], host, "/")


# What may be handed in


async def test_a_connected_socket_is_taken_over() -> None:
    async def handler(ws: Any) -> None:
        await ws.send(await ws.receive_text())

    async with anyio.create_task_group() as tg:

        async def run(task_status: Any) -> None:
            await serve(handler, "127.0.0.1", 0, task_status=task_status)

        server = await tg.start(run)
        sock = socket.create_connection(server.addresses[0])
        async with open_websocket_client(sock, server.addresses[0], "/") as ws:
            await ws.send("x")
            assert await ws.receive_text() == "x"
        assert sock.fileno() == -1
        await server.close()
    ours, theirs = socket.socketpair()
    async with anyio.create_task_group() as tg:

        async def pair_server() -> None:
            from asyncwebsockets import open_websocket_server

            async with open_websocket_server(theirs) as ws:
                await handler(ws)

        tg.start_soon(pair_server)
        async with open_websocket_client(ours, "h", "/") as ws:
            await ws.send("x")
            assert await ws.receive_text() == "x"


async def test_anything_else_is_a_type_error(client_tls: ssl.SSLContext) -> None:
    with pytest.raises(TypeError, match="expected an anyio byte stream or a socket"):
        await create_websocket_client("ws://host", "h", "/")  # type: ignore[arg-type]
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        with pytest.raises(TypeError, match="expected a stream socket"):
            await create_websocket_client(datagram, "h", "/")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        plain = socket.create_connection(listening.getsockname())
        with client_tls.wrap_socket(
            plain, do_handshake_on_connect=False, server_hostname="localhost"
        ) as secure:
            with pytest.raises(TypeError, match="got an SSLSocket"):
                await create_websocket_client(secure, "h", "/")
    with socket.socket() as unconnected, pytest.raises(ValueError, match="connected"):
        await create_websocket_client(unconnected, "h", "/")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"open_timeout": 0},
        {"close_timeout": -1},
        {"ping_interval": 0},
        {"ping_timeout": -1},
        {"max_message_size": -1},
        {"max_read_ahead": 0},
        {"max_handshake_size": 0},
        {"max_connections": 0},
        {"max_handshakes": 0},
        {"drain_timeout": -1},
        {"drain_timeout": math.nan},
        {"ping_interval": math.nan},
    ],
)
def test_settings_out_of_range(kwargs: Any, anyio_backend: object) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        Settings(**kwargs)
    Settings(**dict.fromkeys(kwargs))
