"""Opening handshakes between ours and others, and what they agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asyncwebsockets import Reject, Rejected, Settings, open_websocket
from asyncwebsockets.events import AcceptConnection, RejectConnection

from .link import Ours
from .peer import HEADER, Closed, Options, Refused
from .roster import links

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncwebsockets import Request

    from .link import Link

pytestmark = pytest.mark.anyio

TARGET = "/a/b%20c?d=e&f"


@links(lambda peer: peer.shows_headers, role="client")
async def test_the_peers_request_and_our_response(link: Link) -> None:
    async def accept(request: Request) -> object:
        return AcceptConnection(extra_headers=[(HEADER.encode(), b"ours")])

    options = Options(headers=[(HEADER, "theirs")])
    async with link.connection(options, filter=accept, path=TARGET) as connection:
        request = connection.ws.request
        assert request.target == TARGET
        assert request.header(HEADER) == "theirs"
        assert connection.server is not None
        (address,) = connection.server.addresses
        assert request.host == f"127.0.0.1:{address[1]}"  # type: ignore[index]
        assert connection.far.header == "ours"


@links(role="server")
async def test_our_request_and_the_peers_response(link: Link) -> None:
    options = Options(headers=[(HEADER, "theirs")])
    async with link.connection(options, headers=[(HEADER, "ours")], path=TARGET) as connection:
        assert connection.far.target == TARGET
        assert connection.far.header == "ours"
        assert connection.ws.response.status == 101
        assert connection.ws.response.header(HEADER) == "theirs"


@links(role="client")
async def test_our_server_chooses_the_subprotocol(link: Link) -> None:
    async def choose(request: Request) -> object:
        assert request.subprotocols == ["a", "b", "c"]
        return "b"

    options = Options(subprotocols=["a", "b", "c"])
    async with link.connection(options, filter=choose) as connection:
        assert connection.ws.subprotocol == connection.far.subprotocol == "b"


@links(role="client")
async def test_our_server_takes_the_first_subprotocol(link: Link) -> None:
    async with link.connection(Options(subprotocols=["b", "a"])) as connection:
        assert connection.ws.subprotocol == connection.far.subprotocol == "b"


@links(lambda peer: not peer.wants_subprotocol, role="client")
async def test_our_server_takes_no_subprotocol(link: Link) -> None:
    async def choose(request: Request) -> object:
        return AcceptConnection()

    async with link.connection(Options(subprotocols=["a"]), filter=choose) as connection:
        assert connection.ws.subprotocol is connection.far.subprotocol is None


@links(lambda peer: peer.wants_subprotocol, role="client")
async def test_a_client_that_wants_a_subprotocol_fails_without(link: Link) -> None:
    async def choose(request: Request) -> object:
        return AcceptConnection()

    ours = Ours()
    async with link.listening(ours, filter=choose) as (_, url):
        with pytest.raises(Refused) as caught:
            async with link.peer_connects(url, Options(subprotocols=["a"])):
                pass
        assert caught.value.status is None
        # Our side has accepted.
        ours.leave.set()


@links(role="server")
async def test_the_peer_chooses_the_subprotocol(link: Link) -> None:
    async with link.connection(
        Options(subprotocols=["c", "b"]), subprotocols=["a", "b"]
    ) as connection:
        assert connection.ws.subprotocol == connection.far.subprotocol == "b"


@links(lambda peer: peer.wants_common_subprotocol, role="server")
async def test_no_subprotocol_in_common_is_rejected(link: Link) -> None:
    async with link.peer_serves(Options(subprotocols=["c"])) as listening:
        with pytest.raises(Rejected) as caught:
            async with open_websocket(listening.url, subprotocols=["a", "b"]):
                pass
    assert caught.value.status == 400


@links(lambda peer: not peer.wants_common_subprotocol, role="server")
async def test_no_subprotocol_in_common(link: Link) -> None:
    async with link.connection(Options(subprotocols=["c"]), subprotocols=["a", "b"]) as connection:
        assert connection.ws.subprotocol is connection.far.subprotocol is None


class Pieces:
    """A body that comes piece by piece, as often as it is asked for."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"not "
        await checkpoint()
        yield b"here"


@links(role="client")
@pytest.mark.parametrize(
    ("answer", "status", "field", "body"),
    [
        pytest.param(False, 403, None, b"", id="False"),
        pytest.param(
            RejectConnection(status_code=401, headers=[(b"X-Why", b"secret")]),
            401,
            ("x-why", "secret"),
            b"",
            id="RejectConnection",
        ),
        pytest.param(
            Reject(404, [("X-Why", "gone")], b"not here"),
            404,
            ("x-why", "gone"),
            b"not here",
            id="bytes",
        ),
        pytest.param(
            Reject(503, [("X-Why", "busy")], Pieces()),
            503,
            ("x-why", "busy"),
            b"not here",
            id="pieces",
        ),
    ],
)
async def test_our_server_rejects(
    link: Link, answer: object, status: int, field: tuple[str, str] | None, body: bytes
) -> None:
    async def reject(request: Request) -> object:
        return answer

    async with link.listening(filter=reject) as (server, url):
        with pytest.raises(Refused) as caught:
            async with link.peer_connects(url):
                pass
        assert server.connections == frozenset()
    refused = caught.value
    if not link.peer.shows_refusal:
        assert (refused.status, refused.headers, refused.body) == (None, None, None)
        return
    assert refused.status == status
    assert refused.headers is not None
    assert field is None or field in refused.headers
    if isinstance(answer, Reject) and isinstance(answer.body, Pieces):
        assert ("transfer-encoding", "chunked") in refused.headers
        if not link.peer.undoes_chunks:
            # It shows what has come when the header ends, be it all or not.
            assert refused.body is not None
            assert b"4\r\nnot \r\n4\r\nhere\r\n0\r\n\r\n".startswith(refused.body)
            return
    if link.peer.shows_refusal_body:
        assert (refused.body or b"") == body
    else:
        assert refused.body is None


@links(role="server")
async def test_the_peer_rejects(link: Link) -> None:
    reject = Reject(404, [("X-Why", "gone")], b"not here")
    async with link.peer_serves(Options(reject=reject)) as listening:
        with pytest.raises(Rejected) as caught:
            async with open_websocket(listening.url):
                pass
    rejected = caught.value
    assert rejected.status == 404
    fields = {name.lower(): value for name, value in rejected.headers}
    assert fields[b"x-why"] == b"gone"
    assert rejected.body == b"not here"


@links(lambda peer: peer.trusts_authority)
async def test_tls(link: Link) -> None:
    async with link.connection(Options(tls=link.tls), settings=Settings()) as connection:
        ws, far = connection.ws, connection.far
        assert ws.request.secure
        # A message of this size needs a receiver before it is sent whole.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.send, "x" * 2**20)
            assert await far.receive() == "x" * 2**20
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(far.send, "y" * 2**20)
            assert await ws.receive_text() == "y" * 2**20
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ws.close, 4001, "done")
            assert await far.closed() == Closed(4001, "done")
        assert Closed(ws.close_code, ws.close_reason) == link.peer.echo(4001, "done")


@links(lambda peer: peer.trusts_authority)
async def test_the_peer_closes_tls(link: Link) -> None:
    async with link.connection(Options(tls=link.tls)) as connection:
        ws, far = connection.ws, connection.far
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(far.close, 4001, "done")
            assert [event async for event in ws] == []
        assert (ws.close_code, ws.close_reason) == (4001, "done")
        assert await far.closed() == link.peer.answered(link.role, 4001, "done")
