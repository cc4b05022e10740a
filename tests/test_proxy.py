"""Proxies: tiny-proxy on sockets, and scripts for what no good proxy does."""

from __future__ import annotations

import base64
import logging
import socket
import ssl
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener
from hypothesis import given
from hypothesis import strategies as st
from tiny_proxy import HttpProxyHandler, Socks4ProxyHandler, Socks5ProxyHandler

from asyncwebsockets import (
    HandshakeError,
    HandshakeTimeout,
    Proxy,
    ProxyError,
    Request,
    Settings,
    WebsocketError,
    create_websocket,
    open_websocket,
    reconnect,
    serve,
)
from asyncwebsockets._proxy import choose_proxy
from asyncwebsockets._url import parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = [pytest.mark.anyio]

SECRET = "p4ssw0rd"


@asynccontextmanager
async def listening(
    handle: Callable[[Any], Any], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Run a server of streams; give its port."""
    listener: Any = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port: int = listener.extra(SocketAttribute.local_port)
    if context is not None:
        listener = TLSListener(listener, context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, handle)
        yield port
        tg.cancel_scope.cancel()


class Target:
    """A server of websockets that echoes, and keeps its requests."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[Request] = []

    async def filter(self, request: Request) -> bool:
        self.requests.append(request)
        return True

    async def handle(self, ws: Any) -> None:
        async for text in ws.iter_text():
            await ws.send(text)

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator[Target]:
        async with anyio.create_task_group() as tg:
            server = await tg.start(
                partial(serve, self.handle, "127.0.0.1", 0, ssl=context, filter=self.filter)
            )
            self.port = server.port
            yield self
            await server.close()


HANDLERS = {
    "http": HttpProxyHandler,
    "https": HttpProxyHandler,
    "socks5": Socks5ProxyHandler,
    "socks5h": Socks5ProxyHandler,
    "socks4": Socks4ProxyHandler,
    "socks4a": Socks4ProxyHandler,
}


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("scheme", list(HANDLERS))
async def test_messages_through_a_proxy(
    scheme: str,
    secure: bool,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    user = {"username": "user"} if scheme.startswith("socks4") else None
    handler = HANDLERS[scheme](**(user or {"username": "er", "password": SECRET}))
    credentials = "user" if user else f"er:{SECRET}"
    context = server_tls if scheme == "https" else None
    async with (
        listening(handler.handle, context) as port,
        Target().running(server_tls if secure else None) as target,
    ):
        proxy: Any = f"{scheme}://{credentials}@localhost:{port}"
        if scheme == "https":
            proxy = Proxy(proxy, ssl=client_tls)
        async with open_websocket(
            f"{'wss' if secure else 'ws'}://localhost:{target.port}/x",
            ssl=client_tls if secure else None,
            proxy=proxy,
        ) as ws:
            await ws.send("x" * 100_000)
            assert await ws.receive_text() == "x" * 100_000
            assert ws.request.secure is secure
            assert ws.remote_address is not None
            assert ws.remote_address[1] == port
        assert target.requests[0].host == f"localhost:{target.port}"
        assert target.requests[0].header("Proxy-Authorization") is None
    assert SECRET not in caplog.text


async def test_the_certificate_of_the_server_is_verified_behind_a_proxy(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, authority: Any
) -> None:
    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("other.example").configure_cert(other)
    async with listening(HttpProxyHandler().handle) as port:
        proxy = f"http://127.0.0.1:{port}"
        async with Target().running(other) as target:
            with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch|not valid"):
                await create_websocket(
                    f"wss://localhost:{target.port}/", ssl=client_tls, proxy=proxy
                )
        async with Target().running(server_tls) as target:
            with pytest.raises(ssl.SSLCertVerificationError):
                await create_websocket(f"wss://localhost:{target.port}/", proxy=proxy)


async def test_the_certificate_of_the_proxy_is_verified(server_tls: ssl.SSLContext) -> None:
    async with listening(HttpProxyHandler().handle, server_tls) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await create_websocket("ws://127.0.0.1:1/", proxy=f"https://localhost:{port}")


@pytest.mark.parametrize(("scheme", "status"), [("http", 401), ("socks5", None), ("socks4", None)])
async def test_wrong_credentials_are_final(scheme: str, status: int | None) -> None:
    right = {"username": "user"} if scheme == "socks4" else {"username": "user", "password": "x"}
    async with listening(HANDLERS[scheme](**right).handle) as port:
        url = f"{scheme}://wrong:{SECRET}@127.0.0.1:{port}"
        with pytest.raises(ProxyError) as caught:
            await anext(reconnect("ws://127.0.0.1:1/", proxy=url))
        assert caught.value.status == status
        assert caught.value.permanent
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks4"])
async def test_a_server_that_the_proxy_does_not_reach_may_come_later(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]
    async with listening(HANDLERS[scheme]().handle) as port:
        with pytest.raises(ProxyError) as caught:
            await create_websocket(
                f"ws://127.0.0.1:{nobody}/", proxy=f"{scheme}://127.0.0.1:{port}"
            )
        # SOCKS 4 has one code for that and for a wrong user.
        assert caught.value.permanent is (scheme == "socks4")


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_is_not_there_is_an_error_of_tcp(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]
    for host, error in (("127.0.0.1", OSError), ("name.invalid", socket.gaierror)):
        with pytest.raises(error) as caught:
            await create_websocket("ws://h/", proxy=f"{scheme}://u:{SECRET}@{host}:{nobody}")
        assert not isinstance(caught.value, WebsocketError)
        assert type(caught.value).__module__ in ("builtins", "socket")
        assert SECRET not in str(caught.value)


# What is sent to proxies, and what they answer


async def asked(
    answers: list[bytes], url: str = "ws://h.example:81/", **kwargs: Any
) -> tuple[list[bytes], BaseException]:
    """Connect through a proxy that gives these answers; return what it got, and the error."""
    got: list[bytes] = []

    async def script(stream: Any) -> None:
        async with stream:
            for answer in answers:
                got.append(await stream.receive())
                if answer:
                    await stream.send(answer)

    async with listening(script) as port:
        proxy = kwargs.pop("proxy")
        proxy = proxy(port) if callable(proxy) else proxy.format(port)
        with pytest.raises((HandshakeError, UnicodeError)) as caught:
            await create_websocket(url, proxy=proxy, **kwargs)
    return got, caught.value


async def test_connect_as_it_is_written() -> None:
    got, error = await asked([b"HTTP/1.1 403 No\r\n\r\n"], proxy="u:p%C3%A9@127.0.0.1:{}")
    credentials = base64.b64encode("u:pé".encode()).decode()
    assert got[0].decode().split("\r\n") == [
        "CONNECT h.example:81 HTTP/1.1",
        "Host: h.example:81",
        f"Proxy-Authorization: Basic {credentials}",
        "",
        "",
    ]
    assert isinstance(error, ProxyError)
    assert error.permanent
    got, _ = await asked([b"HTTP/1.1 403 No\r\n\r\n"], "wss://[::1]/", proxy="http://127.0.0.1:{}/")
    assert got[0] == b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n"
    headers = {"proxy-authorization": "Bearer x", "X-A": "b"}
    got, _ = await asked(
        [b"HTTP/1.1 403 No\r\n\r\n"],
        proxy=lambda port: Proxy(f"http://u:p@127.0.0.1:{port}", headers=headers),
    )
    assert got[0].split(b"\r\n")[2:] == [b"proxy-authorization: Bearer x", b"X-A: b", b"", b""]


@pytest.mark.parametrize(
    ("answer", "status", "permanent", "match"),
    [
        (b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", 407, True, "407"),
        (b"HTTP/1.1 302 There\r\nLocation: http://x/\r\n\r\n", 302, True, "302"),
        (b"HTTP/1.1 503 Later\r\nRetry-After: 1\r\n\r\n", 503, False, "503"),
        (b"HTTP/1.1 429 Later\r\n\r\n", 429, False, "429"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", None, True, "malformed"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", None, True, "malformed"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 9000, None, True, "malformed"),
        (b"HTTP/1.1 200 OK\r\n\r\n220 mail.example", None, True, "ahead"),
        (b"", None, False, "without an answer"),
        (b"HTTP/1.1 200 O", None, False, "without an answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None, False, "without an answer"),
    ],
)
async def test_answers_to_connect(
    answer: bytes, status: int | None, permanent: bool, match: str
) -> None:
    _, error = await asked([answer], proxy="http://127.0.0.1:{}")
    assert isinstance(error, ProxyError)
    assert error.status == status
    assert error.permanent is permanent
    assert match in str(error)
    assert bool(error.headers) is (b"Retry" in answer or b"-Auth" in answer or b"Loc" in answer)


async def test_a_proxy_that_says_nothing() -> None:
    async def listen(stream: Any) -> None:
        async with stream:
            await anyio.sleep_forever()

    for scheme in ("http", "socks5", "socks4a"):
        async with listening(listen) as port:
            with pytest.raises(HandshakeTimeout):
                await create_websocket(
                    "ws://h/",
                    proxy=f"{scheme}://127.0.0.1:{port}",
                    settings=Settings(open_timeout=0.01),
                )


async def test_a_connection_that_is_lost_in_connect() -> None:
    async def reset(stream: Any) -> None:
        sock = stream.extra(SocketAttribute.raw_socket)
        await stream.receive()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await anyio.aclose_forcefully(stream)

    for scheme in ("http", "socks5"):
        async with listening(reset) as port:
            with pytest.raises(ProxyError) as caught:
                await create_websocket("ws://h/", proxy=f"{scheme}://127.0.0.1:{port}")
            assert not caught.value.permanent


NAME = b"h.example"


@pytest.mark.parametrize(
    ("scheme", "answers", "requests"),
    [
        (
            "socks5h://",
            [b"\5\0", b"\5\2\0\1" + bytes(6)],
            [b"\5\1\0", b"\5\1\0\3\x09" + NAME + b"\0\x51"],
        ),
        (
            "socks5h://u:p%3A@",
            [b"\5\2", b"\1\0", b"\5\2\0\1" + bytes(6)],
            [b"\5\2\0\2", b"\1\1u\2p:", b"\5\1\0\3\x09" + NAME + b"\0\x51"],
        ),
        ("socks4a://u@", [b"\0\x5d" + bytes(6)], [b"\4\1\0\x51\0\0\0\1u\0" + NAME + b"\0"]),
    ],
)
async def test_socks_as_it_is_written(
    scheme: str, answers: list[bytes], requests: list[bytes]
) -> None:
    got, error = await asked(answers, proxy=scheme + "127.0.0.1:{}")
    assert got == requests
    assert isinstance(error, ProxyError)
    assert error.permanent


@pytest.mark.parametrize("scheme", ["socks5", "socks4"])
async def test_socks_without_names_resolves_them_here(scheme: str) -> None:
    got, _ = await asked(
        [b"\5\0", b"\5\1\0\1" + bytes(6)] if scheme == "socks5" else [b"\0\x5b" + bytes(6)],
        "ws://localhost:81/",
        proxy=scheme + "://127.0.0.1:{}",
    )
    assert b"localhost" not in got[-1]
    assert socket.inet_aton("127.0.0.1") in got[-1]


@pytest.mark.parametrize(
    ("answers", "permanent"),
    [
        ([b"\5\0", b"\5\1\0\1" + bytes(6)], False),
        ([b"\5\0", b"\5\5\0\1" + bytes(6)], False),
        ([b"\5\0", b"\5\x08\0\1" + bytes(6)], True),
        ([b"\5\xff"], True),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], True),
        ([b"\5"], False),
        ([b""], False),
        ([b"\5\0", b"\5\0\0\1"], False),
    ],
)
async def test_answers_of_socks(answers: list[bytes], permanent: bool) -> None:
    _, error = await asked(answers, proxy="socks5h://127.0.0.1:{}")
    assert isinstance(error, ProxyError)
    assert error.permanent is permanent
    assert error.status is None


async def test_socks_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(ModuleNotFoundError, match=r"asyncwebsockets\[socks\]"):
        await anext(reconnect("ws://h/", proxy="socks5://127.0.0.1:1"))


# Which proxy


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h", "http://h:80"),
        ("h:3128", "http://h:3128"),
        (f"u:{SECRET}@h", "http://h:80"),
        (f"https://u:{SECRET}@h/", "https://h:443"),
        ("HTTP://H:0", "http://h:0"),
        ("socks5h://h", "socks5h://h:1080"),
        ("socks4://[::1]:1", "socks4://[::1]:1"),
        ("http://bücher.example", "http://xn--bcher-kva.example:80"),
    ],
)
def test_a_proxy_shows_no_secret(url: str, shown: str, anyio_backend: object) -> None:
    proxy = Proxy(url)
    assert repr(proxy) == f"<Proxy {shown}>"
    assert f"{proxy.scheme}://" in shown
    assert proxy.host in shown
    assert shown.endswith(f":{proxy.port}")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        (f"ftp://u:{SECRET}@h", "'ftp'"),
        (f"ws://u:{SECRET}@h", "'ws'"),
        (f"http://u:{SECRET}@", "with a host"),
        ("", "with a host"),
        (f"http://u:{SECRET}@h/path", "without path"),
        (f"http://u:{SECRET}@h?q", "without path"),
        (f"http://u:{SECRET}@h#f", "without path"),
        (f"http://u:{SECRET}@h:99999", "port"),
        (f"http://u:{SECRET}@h:x", "port"),
        ("socks5://user@h", "password"),
        (f"socks5://:{SECRET}@h", "password"),
        (f"socks5://u:{SECRET}%C3%A9@h", "ASCII"),
        (f"socks4://{SECRET}%00@h", "ASCII"),
        (f"socks5://u:{SECRET}{'x' * 250}@h", "255"),
    ],
)
async def test_a_bad_proxy_is_a_value_error_without_the_secret(
    url: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        await create_websocket("ws://h/", proxy=url)
    assert SECRET not in str(caught.value)
    if url:
        monkeypatch.setenv("ws_proxy", url)
        with pytest.raises(ValueError, match=f"environment's ws_proxy: .*{match}") as caught:
            await create_websocket("ws://h/")
        assert SECRET not in str(caught.value)


@given(
    st.lists(
        st.sampled_from(
            [
                "http://",
                "https://",
                "socks5://",
                "socks4a://",
                "u",
                ":",
                "p",
                "@",
                "h",
                "[::1]",
                "[",
            ]
            + ["]", "/", "?", "#", "%", "%00", "%ff", "\u00fc", "\u2028", " ", "99999", "x:1", "\0"]
        ),
        max_size=8,
    ).map("".join)
    | st.text()
)
def test_any_text_is_a_proxy_or_a_value_error(url: str) -> None:
    try:
        proxy = Proxy(url)
    except ValueError:
        return
    assert proxy.host.isascii()
    assert 0 <= proxy.port <= 65535


async def test_other_bad_arguments(client_tls: ssl.SSLContext) -> None:
    with pytest.raises(ValueError, match="https to go with ssl"):
        Proxy("http://h", ssl=client_tls)
    with pytest.raises(ValueError, match="to go with headers"):
        Proxy("socks5://h", headers={"a": "b"})
    with pytest.raises(ValueError):
        Proxy("http://h", headers={"a": "b\r\nc: d"})
    for name in ("Host", "content-length", "Transfer-Encoding"):
        with pytest.raises(ValueError, match="belongs to CONNECT"):
            Proxy("http://h", headers={name: "1"})
    with pytest.raises(TypeError, match="expected a proxy's URL"):
        await create_websocket("ws://h/", proxy=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "ws", "wss"),
    [
        ({}, None, None),
        ({"http_proxy": "http://a"}, "http://a:80", None),
        ({"HTTPS_PROXY": "http://a"}, "http://a:80", "http://a:80"),
        ({"http_proxy": "http://a", "https_proxy": "http://b:1"}, "http://b:1", "http://b:1"),
        ({"ws_proxy": "http://a", "https_proxy": "http://b"}, "http://a:80", "http://b:80"),
        ({"wss_proxy": "http://a", "all_proxy": "socks5h://b"}, "socks5h://b:1080", "http://a:80"),
        ({"socks_proxy": "b:1", "https_proxy": "http://a"}, "socks5h://b:1", "socks5h://b:1"),
        ({"socks_proxy": "http://b:1"}, "socks5h://b:1", "socks5h://b:1"),
        ({"socks_proxy": "socks4://b:1"}, "socks4://b:1", "socks4://b:1"),
        ({"https_proxy": ""}, None, None),
    ],
)
def test_the_proxy_of_the_environment(
    environment: dict[str, str],
    ws: str | None,
    wss: str | None,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend: object,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for url, expected in (("ws://h.example/", ws), ("wss://h.example/", wss)):
        found = choose_proxy(True, parse_url(url))
        assert repr(found) == (f"<Proxy {expected}>" if expected else "None")
        assert choose_proxy(None, parse_url(url)) is None


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("*", True),
        ("h.example", True),
        (".example", True),
        ("example", True),
        ("h.example:81", True),
        ("h.example:80", False),
        ("xample", False),
        ("other.example, H.EXAMPLE", True),
        ("", False),
    ],
)
def test_no_proxy(
    no_proxy: str, direct: bool, monkeypatch: pytest.MonkeyPatch, anyio_backend: object
) -> None:
    monkeypatch.setenv("ws_proxy", "http://a")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (choose_proxy(True, parse_url("ws://h.example:81/")) is None) is direct


def test_no_proxy_with_ipv6(monkeypatch: pytest.MonkeyPatch, anyio_backend: object) -> None:
    monkeypatch.setenv("ws_proxy", "http://a")
    for value in ("::1", "[::1]", "[::1]:81"):
        monkeypatch.setenv("no_proxy", value)
        assert choose_proxy(True, parse_url("ws://[::1]:81/")) is None
        assert choose_proxy(True, parse_url("ws://[::2]:81/")) is not None


async def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(HttpProxyHandler().handle) as port, Target().running() as target:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        url = f"ws://127.0.0.1:{target.port}/"
        for expected, options in (
            (port, {}),
            (port, {"proxy": True}),
            (target.port, {"proxy": None}),
        ):
            async with open_websocket(url, **options) as ws:
                assert ws.remote_address == ("127.0.0.1", expected)
            async with reconnect(url, **options) as connections:
                assert (await anext(connections)).remote_address == ("127.0.0.1", expected)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with open_websocket(url) as ws:
            assert ws.remote_address == ("127.0.0.1", target.port)
