"""What docs/security.md says, where no other test shows it, and that it names tests that exist."""

from __future__ import annotations

import ast
import logging
import re
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import (
    ConnectionClosed,
    ConnectionClosedError,
    Deflate,
    InvalidHandshake,
    Reject,
    Rejected,
    Request,
    Response,
    Server,
    Settings,
    Websocket,
    open_websocket,
    open_websocket_client,
    serve,
)
from asyncwebsockets._tls import default_context
from asyncwebsockets._url import parse_url
from asyncwebsockets.deflate import PerMessageDeflate
from asyncwebsockets.events import AcceptConnection
from asyncwebsockets.handshake import ClientHandshake, ServerHandshake

from .conftest import CODECS, memory_pair
from .frames import REQUEST, close_payload, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trustme

ROOT = Path(__file__).parents[1]
SECRET = "s3cr3t"


# The documentation


@pytest.mark.parametrize("page", ["limits.md", "security.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", (ROOT / "docs" / page).read_text())
    assert len(named) > 10
    for module, test in named:
        tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert test in {node.name for node in tree.body if isinstance(node, functions)}, test


# Injection

_INJECTIONS = ["a\r\nX: y", "a\nX: y", "a\rX: y", "a\0b", "a\x7fb"]


def accepted() -> ServerHandshake:
    handshake = ServerHandshake(max_size=None)
    offers = b"Sec-WebSocket-Protocol: a\r\n"
    assert handshake.receive_data(REQUEST[:-2] + offers + b"\r\n") is not None
    return handshake


@pytest.mark.parametrize("value", _INJECTIONS)
def test_no_header_field_can_be_injected(value: str) -> None:
    for headers in ([("X-A", value)], [(value, "a")], [("X-A", value.encode())]):
        with pytest.raises(ValueError):
            ClientHandshake(host="h", target="/", headers=headers)
        with pytest.raises(ValueError):
            accepted().accept(AcceptConnection(extra_headers=headers), [])  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            accepted().reject(Reject(403, headers))
    for kwargs in ({"host": value}, {"target": f"/{value}"}, {"subprotocols": [value]}):
        with pytest.raises(ValueError):
            ClientHandshake(**{"host": "h", "target": "/", **kwargs})  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        accepted().accept(AcceptConnection(subprotocol=value), [])
    with pytest.raises(ValueError):
        parse_url(f"ws://example.com/{value}")


@pytest.mark.parametrize("name", ["Upgrade", "Connection", "Sec-WebSocket-Key", "Content-Length"])
def test_nobody_sets_the_handshakes_own_fields(name: str) -> None:
    with pytest.raises(ValueError, match="belongs to the handshake"):
        ClientHandshake(host="h", target="/", headers={name: "x"})
    with pytest.raises(ValueError, match="belongs to the handshake"):
        accepted().accept(AcceptConnection(extra_headers=[(name.encode(), b"x")]), [])


# Logs


async def pass_on(ws: Websocket) -> None:
    while True:
        await ws.receive()


async def fail(ws: Websocket) -> None:
    raise ValueError("the handler's own words")


@asynccontextmanager
async def serving(handler: Any = pass_on, **kwargs: Any) -> AsyncIterator[int]:
    async with anyio.create_task_group() as tg:
        server: Server = await tg.start(partial(serve, handler, "127.0.0.1", 0, **kwargs))
        yield server.port
        await server.close(grace=5)


async def send(port: int, data: bytes) -> None:
    """Send bytes, and wait until the server has closed."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(data)
        await stream.send_eof()
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await stream.receive()


@pytest.mark.anyio
async def test_nothing_a_peer_sends_breaks_a_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "asyncwebsockets")
    odd = b"\x85\x9b[31m"
    async with serving() as port:
        for bad in (
            REQUEST.replace(b"Version: 13", b"Version: 1" + odd),
            REQUEST.replace(b"/path", b"nowhere" + odd),
            REQUEST.replace(b"GET", b"G\nT"),
            REQUEST[:-2] + b"Sec-WebSocket-Protocol: a b" + odd + b"\r\n\r\n",
            REQUEST[:-2] + b"Sec-WebSocket-Protocol: a, a\r\n\r\n",
            REQUEST[:-2] + b'Sec-WebSocket-Extensions: a; b="' + odd + b'"\r\n\r\n',
            REQUEST[:-2] + b"Sec-WebSocket-Extensions: " + odd + b"\r\n\r\n",
            REQUEST[:-2] + b"X" + odd + b": y\r\n\r\n",
            REQUEST[:-2] + b"X: \0\r\n\r\n",
            REQUEST.replace(b"/path", b"/%0a") + frame(8, close_payload(4000, "a\nb"), masked=True),
            REQUEST.replace(b"/path", b"/%0a") + frame(8, close_payload(1000, "a\nb"), masked=True),
        ):
            await send(port, bad)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) >= 11
    for message in messages:
        assert message.isprintable(), message


@pytest.mark.anyio
@pytest.mark.parametrize("handler", [pass_on, fail])
async def test_secrets_are_not_logged(caplog: pytest.LogCaptureFixture, handler: Any) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {"Authorization": f"Bearer {SECRET}", "Cookie": f"a={SECRET}"}

    async def reject(request: Request) -> Reject | bool:
        logging.getLogger("the user's").info("asked for %r", request)
        answer = Reject(401, [("Set-Cookie", SECRET)], SECRET.encode())
        return answer if request.path == "/no" else True

    async with serving(handler, filter=reject) as port:
        for path in ("no", "yes"):
            url = f"ws://user:{SECRET}@127.0.0.1:{port}/{path}?token={SECRET}"
            with suppress(ConnectionClosed, Rejected):
                async with open_websocket(url, {"Cookie": f"a={SECRET}"}) as ws:
                    logging.getLogger("the user's").info("%r %r %r", ws, ws.request, ws.response)
                    await ws.send(SECRET)
                    await ws.close(4000)
            with suppress(ConnectionClosed, Rejected):
                async with open_websocket(url.replace(f"user:{SECRET}@", ""), headers) as ws:
                    await ws.send(SECRET)
                    await ws.ping()
        # Half way through all that can go wrong.
        for start in (b"nowhere?", b"/no\x01?"):
            await send(port, REQUEST.replace(b"/path?", start).replace(b"q=1", SECRET.encode()))
        await send(port, REQUEST + frame(1, SECRET.encode() + b"\xff", masked=True))
    assert caplog.records
    for record in caplog.records:
        assert SECRET not in logging.Formatter().format(record)


def test_the_representation_of_a_request_and_a_response_has_no_secrets() -> None:
    headers = [(b"cookie", SECRET.encode())]
    request = Request("h", f"/path?token={SECRET}", headers=headers, extra_headers=headers)
    assert repr(request) == "<Request GET /path>"
    assert repr(Response(101, headers)) == "<Response 101>"


def test_a_header_field_that_is_refused_is_not_shown() -> None:
    values: list[Any] = [f"{SECRET}\n", [SECRET]]
    for value in values:
        with pytest.raises((TypeError, ValueError)) as caught:
            ClientHandshake(host="h", target="/", headers={"Authorization": value})
        assert SECRET not in str(caught.value)


def test_the_userinfo_of_a_url_goes_into_authorization_only() -> None:
    url = parse_url(f"wss://user:{SECRET}@example.com/path")
    assert SECRET not in f"{url.host_header} {url.target} {url.host}"
    assert url.authorization is not None


# TLS


def test_the_default_context_of_a_client_verifies() -> None:
    context = default_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION


@pytest.mark.anyio
async def test_a_certificate_of_nobody_known_is_refused(server_tls: ssl.SSLContext) -> None:
    async with serving(ssl=server_tls) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            async with open_websocket(f"wss://127.0.0.1:{port}/"):
                pytest.fail("its authority is not known")


@pytest.mark.anyio
async def test_a_certificate_for_another_name_is_refused(
    authority: trustme.CA, client_tls: ssl.SSLContext
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.com").configure_cert(context)
    async with serving(ssl=context) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            async with open_websocket(f"wss://127.0.0.1:{port}/", ssl=client_tls):
                pytest.fail("it is for example.com")


@pytest.mark.anyio
async def test_a_context_of_yours_is_used_as_it_is(server_tls: ssl.SSLContext) -> None:
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname = False
    careless.verify_mode = ssl.CERT_NONE
    async with serving(ssl=server_tls) as port:
        async with open_websocket(f"wss://127.0.0.1:{port}/", ssl=careless) as ws:
            await ws.ping()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_client_on_a_stream_follows_no_redirect(status: int) -> None:
    near, far = memory_pair()
    await far.send(
        b"HTTP/1.1 %d Moved\r\nLocation: ws://other/\r\nContent-Length: 0\r\n\r\n" % status
    )
    with pytest.raises(Rejected) as caught:
        async with open_websocket_client(near, "h", "/", {"Authorization": SECRET}):
            pytest.fail("it was redirected")
    assert caught.value.status == status
    await far.aclose()


# Masks


@pytest.mark.parametrize("made", CODECS)
def test_each_bit_of_a_mask_is_as_often_set_as_not(made: Any) -> None:
    client = made(client=True)
    count = 4000
    masks = [int.from_bytes(client.encode_message(b"", True)[2:6], "big") for _ in range(count)]
    for bit in range(32):
        # Six standard deviations: once in 500 million times.
        assert abs(sum(mask >> bit & 1 for mask in masks) - count / 2) < 6 * (count / 4) ** 0.5
    assert len(set(masks)) > count - 10


# Compression


def test_compression_is_off_by_default() -> None:
    assert Settings().compression is None


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize("apart", [True, False])
def test_without_takeover_no_message_tells_of_another(made: Any, apart: bool) -> None:
    def size_of_a_guess(secret: str) -> int:
        extension = PerMessageDeflate(Deflate(server_no_context_takeover=apart))
        assert extension.accept(extension.name) is not None
        server = made(client=False, extensions=[extension])
        server.encode_message(f"token={secret}; ".ljust(100, "."), True)
        return len(server.encode_message("token=0123456789abcdef; ".ljust(100, "-"), True))

    right, wrong = size_of_a_guess("0123456789abcdef"), size_of_a_guess("~!@#$%^&*()_+{}|")
    assert right == wrong if apart else right < wrong


# Between a proxy and this server


def status_of(data: bytes) -> int:
    """Return the status that answers a request; 101 if it is accepted."""
    handshake = ServerHandshake(max_size=None)
    try:
        assert handshake.receive_data(data) is not None
    except InvalidHandshake as exc:
        return exc.status
    return 101


@pytest.mark.parametrize(
    "extra",
    [
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\nContent-Length: 5\r\n",
        b"Content-Length: 0, 5\r\n",
        b"Content-Length: +0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        b"Host: other\r\n",
        b"X: a\rTransfer-Encoding: chunked\r\n",
        b"X\0: a\r\n",
    ],
)
@pytest.mark.parametrize("upgrade", [True, False])
def test_a_request_that_two_could_read_differently_is_refused(extra: bytes, upgrade: bool) -> None:
    first, rest = REQUEST.split(b"\r\n", 1)
    if not upgrade:
        rest = rest.replace(b"Upgrade: websocket\r\n", b"")
    assert status_of(first + b"\r\n" + extra + rest) == 400
    assert status_of(first + b"\r\n" + rest[:-2] + extra + b"\r\n") == 400


def test_a_folded_line_belongs_to_the_field_before_it() -> None:
    assert status_of(REQUEST.replace(b"\r\n", b"\r\n Transfer-Encoding: chunked\r\n", 1)) == 400
    # To its version, here.
    assert status_of(REQUEST[:-2] + b" Transfer-Encoding: chunked\r\n\r\n") == 426


@pytest.mark.anyio
@pytest.mark.parametrize(
    "first",
    [
        REQUEST.replace(b"Upgrade: websocket\r\n", b""),
        REQUEST.replace(b"Version: 13", b"Version: 8"),
        REQUEST.replace(b"GET", b"POST"),
        REQUEST[:-2] + b"Content-Length: 5\r\n\r\nhello",
        REQUEST.replace(b"/path", b"/no"),
    ],
    ids=["plain", "version", "method", "body", "filter"],
)
async def test_what_is_behind_a_request_is_never_another_one(first: bytes) -> None:
    async def filter(request: Request) -> bool:
        return request.path != "/no"

    async with serving(filter=filter) as port:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(first + REQUEST)
            answer = b""
            with suppress(anyio.EndOfStream):
                while True:
                    answer += await stream.receive()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not answer.startswith(b"HTTP/1.1 101")
    assert b"connection: close\r\n" in answer.lower() or b"upgrade, close\r\n" in answer.lower()


@pytest.mark.anyio
async def test_what_a_proxy_says_of_a_client_is_not_believed() -> None:
    seen: list[tuple[object, bool]] = []

    async def handler(ws: Websocket) -> None:
        seen.append((ws.remote_address, ws.request.secure))

    headers = {
        "Forwarded": "for=192.0.2.1;proto=https",
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Proto": "https",
        "X-Real-IP": "192.0.2.1",
    }
    async with serving(handler) as port:
        async with open_websocket(f"ws://127.0.0.1:{port}/", headers) as ws:
            await ws.wait_closed()
            assert seen == [(ws.local_address, False)]


def test_any_host_is_served() -> None:
    other = REQUEST.replace(b"Host: example.com", b"Host: other.example")
    assert other != REQUEST
    assert status_of(other) == 101


@pytest.mark.anyio
async def test_a_request_behind_a_handshake_is_a_broken_frame() -> None:
    failed: list[Exception] = []

    async def handler(ws: Websocket) -> None:
        try:
            await ws.receive()
        except ConnectionClosedError as exc:
            failed.append(exc)
            raise

    async with serving(handler) as port:
        await send(port, REQUEST + REQUEST)
    assert [getattr(exc, "code", None) for exc in failed] == [1002]


# Limits


def test_no_limit_is_off_by_default_but_the_number_of_connections() -> None:
    off = {each.name for each in fields(Settings) if getattr(Settings(), each.name) is None}
    # Compression and an observer are no limits.
    assert off == {"max_connections", "compression", "observer"}
