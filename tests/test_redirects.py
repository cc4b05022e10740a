"""Redirects and cookies: of our own servers, of aiohttp's and of websockets'."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import warnings
from contextlib import asynccontextmanager
from functools import partial
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import websockets.asyncio.server
from aiohttp import WSMsgType, web
from hypothesis import example, given
from hypothesis import strategies as st

from asyncwebsockets import (
    HandshakeTimeout,
    RedirectError,
    Reject,
    Rejected,
    Request,
    Settings,
    create_websocket,
    open_websocket,
    reconnect,
    serve,
)
from asyncwebsockets._cookies import cookie_header, keep_cookies, make_jar
from asyncwebsockets._dial import make_handshake
from asyncwebsockets._redirects import redirect
from asyncwebsockets._url import parse_url
from asyncwebsockets.events import AcceptConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio]


class Site:
    """A server that answers each path as it is told, and keeps its requests."""

    def __init__(self) -> None:
        self.port = 0
        self.scheme = "ws"
        self.answers: dict[str, Any] = {}
        self.requests: list[Request] = []

    def url(self, path: str = "/", host: str = "localhost", userinfo: str = "") -> str:
        return f"{self.scheme}://{userinfo}{host}:{self.port}{path}"

    async def filter(self, request: Request) -> Any:
        self.requests.append(request)
        return self.answers.get(request.target, True)

    def redirect(self, path: str, location: str, status: int = 302, **headers: str) -> None:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.answers[path] = Reject(status, [("Location", location), *fields])


@asynccontextmanager
async def site(context: ssl.SSLContext | None = None, **where: Any) -> AsyncIterator[Site]:
    made = Site()
    made.scheme = "ws" if context is None else "wss"

    async def handler(ws: Any) -> None:
        await ws.wait_closed()

    async with anyio.create_task_group() as tg:
        if not where:
            where = {"host": "127.0.0.1", "port": 0}
        server = await tg.start(partial(serve, handler, filter=made.filter, ssl=context, **where))
        if "uds" not in where:
            made.port = server.port
        yield made
        await server.close()


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/there?a=b%20c", "/there?a=b%20c"),
        ("there", "/from/there"),
        ("?q", "/from/here?q"),
        ("//127.0.0.1:{port}/x", "/x"),
        ("http://localhost:{port}/x#fragment", "/x"),
        ("WS://localhost:{port}/x", "/x"),
        ("/caf\u00e9 x", "/caf%E9%20x"),
    ],
)
async def test_a_redirect_is_followed(location: str, target: str) -> None:
    async with site() as there:
        there.redirect("/from/here", location.format(port=there.port))
        async with open_websocket(
            there.url("/from/here"), {"X-A": "b"}, subprotocols=["chat"]
        ) as ws:
            assert ws.request.target == target
            assert ws.subprotocol == "chat"
        assert [request.target for request in there.requests] == ["/from/here", target]
        assert [request.header("X-A") for request in there.requests] == ["b", "b"]


async def test_every_status_that_redirects() -> None:
    async with site() as there:
        for status in (301, 302, 303, 307, 308):
            there.redirect("/", "/there", status)
            async with open_websocket(there.url()) as ws:
                assert ws.request.target == "/there"


async def test_from_ws_to_wss_and_never_back(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncwebsockets._dial.default_context", lambda: client_tls)
    async with site() as plain, site(server_tls) as secure:
        for scheme in ("https", "wss"):
            plain.redirect("/", f"{scheme}://localhost:{secure.port}/")
            async with open_websocket(plain.url()) as ws:
                assert ws.request.secure
        secure.redirect("/back", plain.url("/x"))
        for start in (secure.url("/back"), plain.url("/back")):
            plain.redirect("/back", secure.url("/back"))
            with pytest.raises(RedirectError, match="from wss to ws") as caught:
                await create_websocket(start)
            assert caught.value.status == 302
        assert all(request.path != "/x" for request in plain.requests)


async def test_credentials_stay_with_their_origin() -> None:
    headers = {"Cookie": "a=b", "X-A": "b", "Proxy-Authorization": "Basic c"}
    async with site() as first, site() as second:
        first.redirect("/", "/again")
        first.redirect("/again", second.url("/x"))
        async with open_websocket(first.url(userinfo="user:pw@"), headers):
            pass
        async with open_websocket(
            first.url(), {**headers, "authorization": "Bearer x", "Host": "name.example"}
        ):
            pass
        for request in first.requests:
            assert request.header("Authorization") in ("Basic dXNlcjpwdw==", "Bearer x")
            assert request.header("Cookie") == "a=b"
        assert first.requests[-1].host == "name.example"
        for request in second.requests:
            for name in ("Authorization", "Cookie", "Proxy-Authorization"):
                assert request.header(name) is None
            assert request.header("X-A") == "b"
            assert request.host == f"localhost:{second.port}"
        assert len(second.requests) == 2


@pytest.mark.parametrize(
    ("url", "location", "same"),
    [
        ("ws://h/", "http://H:80/", True),
        ("wss://h/", "https://h:443/", True),
        ("ws://h/", "ws://h:81/", False),
        ("ws://h/", "wss://h/", False),
        ("ws://h/", "ws://h.example/", False),
        ("ws://h/", "ws://h.:80/", False),
        ("ws://bücher.example/", "//xn--bcher-kva.example/", True),
        ("ws://[::1]/", "//[::1]:80/", True),
    ],
)
def test_what_an_origin_is(url: str, location: str, same: bool, anyio_backend: object) -> None:
    headers = [(b"AUTHORIZATION", b"x"), (b"A", b"b")]
    answer = Rejected(302, [(b"LOCATION", location.encode())])
    following, kept = redirect(answer, parse_url(url), headers)
    assert kept == (headers if same else headers[1:])
    assert following.secure is location.startswith(("wss:", "https:"))


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("ftp://h/", "'ftp'"),
        ("javascript:alert(1)", "'javascript'"),
        ("mailto:a@b", "'mailto'"),
        ("https://", "no URL"),
        ("http://[::1/", "no URL"),
        ("http://h..example/", "no URL"),
        ("http://h:99999/", "no URL"),
        ("//user:pw@localhost/", "userinfo"),
        ("ws://user@localhost/", "userinfo"),
    ],
)
async def test_a_location_that_leads_nowhere(location: str, match: str) -> None:
    async with site() as there:
        there.redirect("/", location)
        with pytest.raises(RedirectError, match=match) as caught:
            await anext(reconnect(there.url()))
        assert caught.value.headers[0] == (b"Location", location.encode())
        assert len(there.requests) == 1


PIECES = st.sampled_from(
    ["http:", "https:", "ws:", "wss:", "//", "/", "h", "h.example", ":443", ":80", ":", "@"]
    + [
        "u:p@",
        ".",
        "?q",
        "#f",
        "..",
        "[::1]",
        "[",
        "]",
        "%",
        "%00",
        "\\",
        " ",
        "\t",
        "\x80",
        "\xff",
        ";",
        "file:",
    ]
)


@given(
    location=st.lists(PIECES, max_size=8).map("".join) | st.text(st.characters(codec="latin-1")),
    start=st.sampled_from(["ws://u:p@h.example/a/b?c", "wss://u:p@h.example/", "ws://[::1]:81/"]),
)
@example(location="//h\x80", start="ws://h.example/")
def test_any_location_leads_to_a_url_or_is_refused(location: str, start: str) -> None:
    url = parse_url(start)
    headers = [(b"Cookie", b"a=b"), (b"X", b"y")]
    try:
        following, kept = redirect(
            Rejected(302, [(b"Location", location.encode("latin-1"))]), url, headers
        )
    except RedirectError:
        return
    assert following.secure or not url.secure
    if following.origin == url.origin:
        assert (following.authorization, kept) == (url.authorization, headers)
    else:
        assert (following.authorization, kept) == (None, headers[1:])
    # What comes out of it can be looked up and asked for.
    following.host.encode("idna")
    make_handshake(
        following.host_header, following.target, kept, None, Settings(), following.secure
    )


async def test_two_locations_and_none() -> None:
    async with site() as there:
        there.redirect("/two", "/x", Location="/y")
        with pytest.raises(RedirectError, match="one Location header field, got 2"):
            await create_websocket(there.url("/two"))
        for status in (302, 300, 304, 305):
            there.answers["/none"] = Reject(status)
            if status != 302:
                there.redirect("/none", "/x", status)
            with pytest.raises(Rejected) as caught:
                await create_websocket(there.url("/none"))
            assert type(caught.value) is Rejected
            assert caught.value.status == status


@pytest.mark.parametrize("limit", [0, 1, 10, None])
async def test_how_many(limit: int | None) -> None:
    settings = Settings(max_redirects=limit, open_timeout=None if limit else 5)
    async with site() as there:
        for number in range(12):
            there.redirect(f"/{number}", f"/{number + 1}")
        if limit is None:
            async with open_websocket(there.url("/0"), settings=settings) as ws:
                assert ws.request.target == "/12"
            return
        with pytest.raises(Rejected) as caught:
            await create_websocket(there.url("/0"), settings=settings)
        assert caught.value.status == 302
        assert (type(caught.value) is Rejected) is (limit == 0)
        assert len(there.requests) == limit + 1
        async with open_websocket(there.url(f"/{12 - limit}"), settings=settings) as ws:
            assert ws.request.target == "/12"
    with pytest.raises(ValueError, match="max_redirects"):
        Settings(max_redirects=-1)


async def test_one_time_out_for_all_of_them() -> None:
    async with site() as there:
        there.redirect("/", "/")
        settings = Settings(max_redirects=None, open_timeout=0.05)
        with pytest.raises(HandshakeTimeout):
            await create_websocket(there.url(), settings=settings)


# Unix sockets


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with site(uds=path) as there:
        for uds in (path, str(path)):
            async with open_websocket("ws://name.example/x?y", uds=uds) as ws:
                assert ws.request.target == "/x?y"
            async with reconnect("ws://name.example/x?y", uds=uds) as connections:
                await anext(connections)
        assert {request.host for request in there.requests} == {"name.example"}
        there.redirect("/here", "/there")
        async with open_websocket("ws://name.example/here", uds=path) as ws:
            assert ws.request.target == "/there"
        there.redirect("/away", "ws://other.example/")
        with pytest.raises(RedirectError, match="Unix socket"):
            await create_websocket("ws://name.example/away", uds=path)
        with pytest.raises(ValueError, match="got both"):
            await create_websocket("ws://h/", uds=path, proxy="http://h")
    with pytest.raises(FileNotFoundError):
        await create_websocket("ws://h/", uds=tmp_path / "none")


async def test_a_unix_socket_with_tls_and_without_the_proxy_of_the_environment(
    tmp_path: Path,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    path = tmp_path / "socket"
    async with site(server_tls, uds=path):
        async with open_websocket("wss://localhost/", ssl=client_tls, uds=path) as ws:
            assert ws.request.secure
        with pytest.raises(ssl.SSLCertVerificationError):
            await create_websocket("wss://other.example/", ssl=client_tls, uds=path)


# Cookies


def values(jar: CookieJar) -> dict[str, str | None]:
    return {cookie.name: cookie.value for cookie in jar}


async def test_cookies_go_out_and_come_in() -> None:
    jar = CookieJar()
    async with site() as there:
        there.answers["/open"] = AcceptConnection(
            extra_headers=[(b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2; Path=/b; HttpOnly")]
        )
        there.answers["/no"] = Reject(403, [("Set-Cookie", "c=3; Max-Age=100")])
        there.redirect("/login", "/open", Set_Cookie="d=4")
        async with open_websocket(there.url("/open"), cookies=jar):
            assert values(jar) == {"a": "1", "b": "2"}
        with pytest.raises(Rejected):
            await create_websocket(there.url("/no"), cookies=jar)
        assert values(jar) == {"a": "1", "b": "2", "c": "3"}
        async with open_websocket(there.url("/login"), cookies=jar):
            pass
        assert [request.header("Cookie") for request in there.requests] == [
            None,
            "a=1",
            "a=1; c=3",
            "a=1; c=3; d=4",
        ]
        async with open_websocket(there.url("/b"), {"cookie": "own=1"}, cookies=jar):
            assert there.requests[-1].header("Cookie") == "own=1"
        async with open_websocket(there.url("/b"), cookies=jar):
            sent = there.requests[-1].header("Cookie")
            assert sent is not None
            assert sorted(sent.split("; ")) == ["a=1", "b=2", "c=3", "d=4"]
        # Without a jar nothing is kept.
        async with open_websocket(there.url("/open")):
            pass
        async with open_websocket(there.url("/open")):
            assert there.requests[-1].header("Cookie") is None


async def test_cookies_as_a_mapping_stay_with_their_host() -> None:
    async with site() as first, site() as second:
        first.redirect("/", "/set", Set_Cookie="c=3")
        first.redirect("/set", second.url("/", host="127.0.0.1"))
        async with open_websocket(first.url(), cookies={"a": "1", "b": '"2"'}):
            pass
        assert [request.header("Cookie") for request in first.requests] == [
            'a=1; b="2"',
            'a=1; b="2"; c=3',
        ]
        assert second.requests[0].header("Cookie") is None
        async with reconnect(first.url("/x"), cookies={"a": "1"}) as connections:
            await anext(connections)
        assert first.requests[-1].header("Cookie") == "a=1"


async def test_secure_cookies(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    jar = CookieJar()
    async with site(server_tls) as secure, site() as plain:
        secure.answers["/"] = AcceptConnection(extra_headers=[(b"Set-Cookie", b"s=1; Secure")])
        for _ in range(2):
            async with open_websocket(secure.url(), ssl=client_tls, cookies=jar):
                pass
        assert secure.requests[-1].header("Cookie") == "s=1"
        async with open_websocket(plain.url(), cookies=jar):
            assert plain.requests[0].header("Cookie") is None


async def test_the_policy_of_the_jar_holds() -> None:
    jar = CookieJar(DefaultCookiePolicy(blocked_domains=["localhost.local"]))
    async with site() as there:
        there.answers["/"] = AcceptConnection(
            extra_headers=[(b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2; Domain=other.example")]
        )
        async with open_websocket(there.url(), cookies=jar):
            assert values(jar) == {}
        async with open_websocket(there.url(host="127.0.0.1"), cookies=jar):
            assert values(jar) == {"a": "1"}


@pytest.mark.parametrize(
    "cookies",
    [{"a b": "1"}, {"": "1"}, {"a": "1;b=2"}, {"a": "1\r\nX: y"}, {"a": "\u00e9"}, {"a": 'b"c'}],
)
async def test_bad_cookies_are_a_value_error_without_the_value(cookies: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cookie") as caught:
        await create_websocket("ws://127.0.0.1:1/", cookies=cookies)
    assert not any(len(value) > 1 and value in str(caught.value) for value in cookies.values())


@pytest.mark.parametrize("cookies", ["a=b", [("a", "b")], {"a": 1}, {b"a": "b"}])
async def test_cookies_of_another_type(cookies: Any) -> None:
    with pytest.raises(TypeError, match="expected"):
        await create_websocket("ws://127.0.0.1:1/", cookies=cookies)


ATTRIBUTES = st.sampled_from(
    ["Path", "path=/", "Domain=h.example", "Domain=", "Max-Age=x", "Max-Age=9" + "9" * 30]
    + ["Expires=Wed, 99 Foo 99999 25:61:61 GMT", "Expires", "Version=1", "version=x", "Secure"]
    + ["Port", 'Port="a,b"', "Port=1", "=", "", '"', "Expires=01 Jan 1970 00:00:00", "Discard"]
)


@given(
    values=st.lists(
        st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=40)
        | st.lists(ATTRIBUTES, max_size=5).map(lambda parts: "; ".join(["a=b", *parts])),
        max_size=4,
    )
)
def test_no_set_cookie_is_an_error_or_a_warning(values: list[str]) -> None:
    url = parse_url("ws://h.example/")
    jar = make_jar({"own": "1"}, url)
    assert jar is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_cookies(jar, url, [(b"set-cookie", value.encode("latin-1")) for value in values])
    header = cookie_header(jar, url)
    assert header is None or not set(header) & set(b"\r\n\0")


def test_a_jar_may_have_cookies_of_before(anyio_backend: object) -> None:
    jar = CookieJar()
    url = parse_url("ws://h.example/a")
    cookie = Cookie(
        *(0, "a", "1", None, False, "h.example", False, False, "/", True),
        *(False, None, False, None, None, {}),
    )
    jar.set_cookie(cookie)
    assert make_jar(jar, url) is jar
    assert cookie_header(jar, url) == b"a=1"


# Servers of others


class Others:
    """aiohttp's server and websockets', in an event loop of their own."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.started = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.stopped: asyncio.Event

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.main())
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.stopped.set)

    async def main(self) -> None:
        self.stopped = asyncio.Event()
        app = web.Application()
        app.add_routes(
            [
                web.get("/login", self.aiohttp_login),
                web.get("/loop", self.aiohttp_loop),
                web.get("/echo", self.aiohttp_echo),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, sock).start()
        self.ports["aiohttp"] = sock.getsockname()[1]
        async with websockets.asyncio.server.serve(
            self.websockets_echo, "127.0.0.1", 0, process_request=self.websockets_login
        ) as server:
            self.ports["websockets"] = next(iter(server.sockets)).getsockname()[1]
            self.started.set()
            await self.stopped.wait()
        await runner.cleanup()

    async def aiohttp_login(self, request: web.Request) -> web.Response:
        response = web.Response(status=302, headers={"Location": "/echo"})
        response.set_cookie("session", "s3", httponly=True, samesite="Lax")
        return response

    async def aiohttp_loop(self, request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("/loop")

    async def aiohttp_echo(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        ws.set_cookie("seen", "yes")
        await ws.prepare(request)
        await ws.send_str(request.headers.get("Cookie", "none"))
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                await ws.send_str(message.data)
        return ws

    def websockets_login(self, connection: Any, request: Any) -> Any:
        if request.path == "/echo":
            return None
        response = connection.respond(307, "elsewhere")
        response.headers["Location"] = "/echo" if request.path == "/login" else request.path
        if request.path == "/login":
            response.headers["Set-Cookie"] = "session=s3; Path=/; HttpOnly"
        return response

    async def websockets_echo(self, connection: Any) -> None:
        await connection.send(connection.request.headers.get("Cookie", "none"))
        async for message in connection:
            await connection.send(message)


@pytest.fixture(scope="module")
def others() -> Iterator[Others]:
    made = Others()
    thread = threading.Thread(target=made.run)
    thread.start()
    assert made.started.wait(30)
    yield made
    made.stop()
    thread.join()


@pytest.mark.parametrize("server", ["aiohttp", "websockets"])
async def test_a_login_of_another_server(server: str, others: Others) -> None:
    url = f"ws://127.0.0.1:{others.ports[server]}"
    jar = CookieJar()
    async with open_websocket(f"{url}/login", cookies=jar) as ws:
        assert await ws.receive_text() == "session=s3"
        await ws.send("hello")
        assert await ws.receive_text() == "hello"
    assert values(jar) == {"session": "s3"} | ({"seen": "yes"} if server == "aiohttp" else {})
    async with open_websocket(f"{url}/login") as ws:
        assert await ws.receive_text() == "none"
    with pytest.raises(RedirectError, match="max_redirects=10"):
        await create_websocket(f"{url}/loop")
    with pytest.raises(Rejected) as caught:
        await create_websocket(f"{url}/login", settings=Settings(max_redirects=0))
    assert caught.value.status in (302, 307)
