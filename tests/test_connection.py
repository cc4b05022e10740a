"""A connection from both ends, on every backend, codec and transport."""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from wsproto.connection import ConnectionState

from asyncwebsockets import (
    ConnectionClosedError,
    ConnectionClosedLocally,
    ConnectionClosedOK,
    Deflate,
    HandshakeError,
    InvalidJSON,
    Settings,
    UnexpectedMessage,
    Websocket,
    open_websocket_client,
    open_websocket_server,
)
from asyncwebsockets.events import BytesMessage, Message, Ping, TextMessage
from asyncwebsockets.transport import StreamTransport

from .conftest import cut, memory_pair
from .frames import REQUEST, close_payload, frame
from .test_bad_input import raw_client

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .conftest import Pairs, Stream

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("codec")]

COMPRESSIONS = [
    pytest.param(None, id="plain"),
    pytest.param(Deflate(threshold=0), id="deflate"),
    pytest.param(
        Deflate(
            server_max_window_bits=9,
            client_max_window_bits=10,
            server_no_context_takeover=True,
            client_no_context_takeover=True,
            level=9,
            mem_level=1,
            threshold=0,
        ),
        id="deflate-small",
    ),
]

MESSAGES: list[Any] = ["", "text", "é€𝄞" * 100, b"", b"\x00\xff", b"x" * 70_000, "y" * 200_000]
MESSAGES += ["é€𝄞" * 40_000, bytes(range(256)) * 2000]


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_messages_arrive_whole_in_both_directions(
    pairs: Pairs, compression: Deflate | None
) -> None:
    async with pairs.connect(Settings(compression=compression)) as ends:
        for sender, receiver in (ends, ends[::-1]):

            async def send_all(sender: Websocket = sender) -> None:
                for data in MESSAGES:
                    await sender.send(data)

            async with anyio.create_task_group() as tg:
                tg.start_soon(send_all)
                for data in MESSAGES:
                    event = await receiver.receive()
                    assert isinstance(event, TextMessage if isinstance(data, str) else BytesMessage)
                    assert event.data == data
                    assert type(event.data) is type(data)
                    assert event.frame_finished
                    assert event.message_finished


@pytest.mark.parametrize(
    "data", [bytearray(b"abc"), memoryview(b"abc"), memoryview(b"aabbcc")[::2]]
)
async def test_every_kind_of_buffer_is_sent_as_binary(pairs: Pairs, data: Any) -> None:
    async with pairs.connect() as (client, server):
        await client.send(data)
        assert await server.receive_bytes() == b"abc"


async def test_sending_anything_else_is_a_type_error(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        with pytest.raises(TypeError, match="expected str, bytes, bytearray or memoryview"):
            await client.send(3)  # type: ignore[arg-type]
        with pytest.raises(UnicodeEncodeError):
            await client.send("\ud800")
        with pytest.raises(UnicodeEncodeError):
            await client.send("\ud800", final=False)
        await client.send(b"still usable")
        assert await server.receive_bytes() == b"still usable"


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_fragmented_message_arrives_as_one(
    pairs: Pairs, compression: Deflate | None
) -> None:
    async with pairs.connect(Settings(compression=compression)) as (client, server):
        await client.send("a", final=False)
        await client.send("", final=False)
        await client.send("bc", final=False)
        await client.send("d")
        assert await server.receive() == TextMessage("abcd")
        await server.send(b"1", final=False)
        await server.send(b"")
        assert await client.receive() == BytesMessage(b"1")


async def test_the_kind_may_not_change_within_a_message(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        await client.send("a", final=False)
        with pytest.raises(TypeError, match="expected more of the text message begun, got binary"):
            await client.send(b"b")
        await client.send("b")
        assert await server.receive_text() == "ab"


async def test_the_task_that_began_a_message_owns_it(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        began, others_wait = anyio.Event(), anyio.Event()

        async def owner() -> None:
            await client.send("a", final=False)
            began.set()
            await others_wait.wait()
            await client.send("b", final=False)
            await client.send("c")

        async def other(number: int) -> None:
            await began.wait()
            if number == 2:
                others_wait.set()
            await client.send(b"%d" % number)

        async with anyio.create_task_group() as tg:
            tg.start_soon(owner)
            for number in range(3):
                tg.start_soon(other, number)
            assert await server.receive_text() == "abc"
            assert {await server.receive_bytes() for _ in range(3)} == {b"0", b"1", b"2"}


async def test_message_sends_one_message_in_pieces(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        async with client.message() as message:
            await message.send("a")
            await message.send("b")
            with pytest.raises(TypeError):
                await message.send(b"c")
        async with client.message():
            pass
        await client.send("next")
        assert await server.receive_text() == "ab"
        assert await server.receive_text() == "next"


async def test_a_message_left_by_an_exception_fails_the_connection(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        with pytest.raises(KeyError):
            async with client.message():
                raise KeyError
        await client.send("nothing happened yet")
        assert await server.receive_text() == "nothing happened yet"
        with pytest.raises(KeyError):
            async with client.message() as message:
                await message.send("half")
                raise KeyError
        with pytest.raises(anyio.ClosedResourceError):
            await client.send("x")
        with pytest.raises(ConnectionClosedOK) as caught:
            await server.receive()
        assert caught.value.code == 1011


async def test_many_tasks_send_without_tearing_frames(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        sizes = [0, 1, 125, 126, 65_535, 65_536, 100_000]

        async def send(number: int) -> None:
            for size in sizes:
                await client.send(bytes([number]) * size)

        async with anyio.create_task_group() as tg:
            for number in range(10):
                tg.start_soon(send, number)
            received = [await server.receive_bytes() for _ in range(10 * len(sizes))]
        for number in range(10):
            mine = [data for data in received if data[:1] == bytes([number])]
            assert [len(data) for data in mine] == sizes[1:]
            assert all(set(data) == {number} for data in mine)


async def test_who_waits_for_room_does_not_send_into_the_fragments_of_another(pairs: Pairs) -> None:
    async with pairs.connect(Settings(max_message_size=None)) as (client, server):
        expected = Counter(["y" * 4_000_000, *["whole"] * 30, *["fragments"] * 30])

        async def send(*pieces: str) -> None:
            for piece in pieces[:-1]:
                await server.send(piece, final=False)
            await server.send(pieces[-1])

        async with anyio.create_task_group() as tg:
            tg.start_soon(send, "y" * 4_000_000)
            await anyio.wait_all_tasks_blocked()
            for _ in range(30):
                tg.start_soon(send, "whole")
                tg.start_soon(send, "frag", "ments")
            await anyio.wait_all_tasks_blocked()
            came = Counter([await client.receive_text() for _ in range(expected.total())])
        assert came == expected


async def test_text_that_cannot_be_sent_holds_up_nobody(pairs: Pairs) -> None:
    async with pairs.connect(Settings(max_message_size=None)) as (client, server):
        async with anyio.create_task_group() as tg:

            async def send_what_cannot_be_sent() -> None:
                with pytest.raises(UnicodeEncodeError):
                    await server.send("\ud800", final=False)

            # The one waits for room, and the other for the message that the one begins.
            tg.start_soon(server.send, "y" * 4_000_000)
            await anyio.wait_all_tasks_blocked()
            tg.start_soon(send_what_cannot_be_sent)
            await anyio.wait_all_tasks_blocked()
            tg.start_soon(server.send, "behind")
            await anyio.wait_all_tasks_blocked()
            assert len(await client.receive_text()) == 4_000_000
            assert await client.receive_text() == "behind"


class NoMemory:
    """A codec for which there is no memory in the methods of `fails`."""

    def __init__(self, codec: Any, fails: tuple[str, ...]) -> None:
        self._codec = codec
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        if name in self._fails:
            return self._fail
        return getattr(self._codec, name)

    def _fail(self, *_: object) -> None:
        raise MemoryError


@pytest.mark.parametrize(
    ("fails", "waiting"),
    [
        (("receive_data",), True),
        (("receive_data",), False),
        (("next_message", "next_events"), True),
        (("next_message", "next_events"), False),
    ],
    ids=["receiving, waited for", "receiving", "decoding, waited for", "decoding"],
)
async def test_what_there_is_no_memory_for_ends_the_connection(
    pairs: Pairs, fails: tuple[str, ...], waiting: bool
) -> None:
    async with raw_client(pairs) as (raw, ws):

        async def receive() -> None:
            # Who reads is told what it was; where the loop does, how it ended.
            with pytest.raises((MemoryError, ConnectionClosedError)):
                await ws.receive()

        channel: Any = ws._channel
        channel._codec = NoMemory(channel._codec, fails)
        async with anyio.create_task_group() as tg:
            if waiting:
                tg.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
            # Not all of a message.
            await raw.send(frame(2, b"x" * 20_000, masked=True)[:-1])
            if not waiting:
                await anyio.wait_all_tasks_blocked()
                tg.start_soon(receive)
            assert await raw.frame() == (0x88, close_payload(1011, "internal error"))
        assert ws.close_code == 1011


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_stream_gives_a_message_in_bounded_pieces(
    pairs: Pairs, compression: Deflate | None
) -> None:
    settings = Settings(compression=compression, max_message_size=1000)
    async with pairs.connect(settings) as (client, server):
        total = 3_000_000

        async def send() -> None:
            await client.send(b"z" * total)
            await client.send("é" * 1000, final=False)
            await client.send("é" * 1000)
            await client.send("after")

        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            got = 0
            async with server.receive_stream() as pieces:
                async for piece in pieces:
                    assert isinstance(piece, bytes)
                    assert 0 < len(piece) <= 256 * 1024
                    got += len(piece)
            assert got == total
            async with server.receive_stream() as pieces:
                texts = [piece async for piece in pieces]
            assert "".join(texts) == "é" * 2000  # type: ignore[arg-type]
            assert await server.receive_text() == "after"


async def test_what_is_left_of_a_stream_is_dropped(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):

        async def send() -> None:
            await client.send(b"z" * 500_000)
            await client.send("after")
            await client.send("again")

        async with anyio.create_task_group() as tg:
            tg.start_soon(send)
            with pytest.raises(KeyError):
                async with server.receive_stream() as pieces:
                    async for _ in pieces:
                        raise KeyError
            assert await server.receive_text() == "after"
            async with server.receive_stream() as pieces:
                pass
            with pytest.raises(anyio.ClosedResourceError):
                await pieces.__anext__()
            assert await server.receive_text() == "again"


async def test_a_stream_and_a_receive_exclude_each_other(pairs: Pairs) -> None:
    async with pairs.connect() as (_, server):
        async with server.receive_stream():
            with pytest.raises(anyio.BusyResourceError):
                await server.receive()
            with pytest.raises(anyio.BusyResourceError):
                async with server.receive_stream():
                    pytest.fail("two streams at a time")


async def test_a_second_task_in_receive_is_told_so(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:

        async def first() -> None:
            assert await server.receive_text() == "for the first"

        tg.start_soon(first)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await server.receive()
        await client.send("for the first")


async def test_receive_text_bytes_and_json(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        await client.ping()
        await client.send("text")
        await client.send(b"bytes")
        await client.send_json({"a": [1, None, "é"]})
        await client.send(b"[1]")
        await client.send("{")
        await client.send("wrong")
        await client.send(b"wrong")
        assert await server.receive_text() == "text"
        assert await server.receive_bytes() == b"bytes"
        assert await server.receive_json() == {"a": [1, None, "é"]}
        assert await server.receive_json() == [1]
        with pytest.raises(InvalidJSON, match="expected JSON: .*line 1 column 2") as no_json:
            await server.receive_json()
        assert no_json.value.data == "{"
        assert isinstance(no_json.value, ValueError)
        with pytest.raises(UnexpectedMessage, match="expected a binary message, a text") as text:
            await server.receive_bytes()
        assert text.value.data == "wrong"
        with pytest.raises(UnexpectedMessage, match="expected a text message, a binary") as binary:
            await server.receive_text()
        assert binary.value.data == b"wrong"
        with pytest.raises(ValueError):
            await client.send_json(float("nan"))
        with pytest.raises(TypeError):
            await client.send_json(object())


async def test_iter_text_and_iter_bytes_end_with_the_connection(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:

        async def send() -> None:
            await client.send("a")
            await client.send("b")
            await client.close(1000)

        tg.start_soon(send)
        assert [text async for text in server.iter_text()] == ["a", "b"]
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:

        async def send_bytes() -> None:
            await client.send(b"a")
            await client.send("b")

        tg.start_soon(send_bytes)
        received = 0
        with pytest.raises(UnexpectedMessage):
            async for data in server.iter_bytes():
                assert data == b"a"
                received += 1
        assert received == 1


async def test_leaving_a_loop_over_messages_leaves_nothing_to_be_closed(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        for text in ("a", "b"):
            await client.send(text)
            async for received in server.iter_text():
                assert received == text
                break
        # trio says of a generator that it was not closed.
        gc.collect()


async def test_a_ping_is_answered_whatever_the_other_side_awaits(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        assert client.latency is None
        assert 0 <= await client.ping(b"payload") < 10
        latency = client.latency
        assert latency is not None
        assert 0 <= await server.ping("text") < 10
        # The ping is an event of the other side, too.
        assert await server.receive() == Ping(b"payload")
        assert await client.receive() == Ping(b"text")


async def test_concurrent_pings_get_their_own_pongs(pairs: Pairs) -> None:
    async with pairs.connect() as (client, _):
        trips: list[float] = []

        async def ping(payload: bytes | None) -> None:
            trips.append(await client.ping(payload))

        async with anyio.create_task_group() as tg:
            for payload in (None, None, b"same", b"same", b""):
                tg.start_soon(ping, payload)
        assert len(trips) == 5


async def test_a_ping_payload_has_125_bytes_at_most(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        await client.ping(b"x" * 125)
        with pytest.raises(ValueError, match="at most 125 bytes, got 126"):
            await client.ping(b"x" * 126)
        assert await server.receive() == Ping(b"x" * 125)


@pytest.mark.parametrize("closer", ["client", "server"])
@pytest.mark.parametrize(
    ("code", "reason", "sent"),
    [(1000, "", 1000), (1001, "away", 1001), (4001, "é" * 61, 4001), (1006, "x", 1000)],
)
async def test_both_sides_see_how_the_connection_was_closed(
    pairs: Pairs, closer: str, code: int, reason: str, sent: int
) -> None:
    async with pairs.connect() as ends:
        near, far = ends if closer == "client" else ends[::-1]
        assert near.close_code is None
        assert near.close_reason is None
        assert near.state.name == "OPEN"
        async with anyio.create_task_group() as tg:
            tg.start_soon(near.close, code, reason)
            assert [event async for event in far] == []
        for end in ends:
            assert (end.close_code, end.close_reason) == (sent, reason)
        assert near.state is ConnectionState.CLOSED
        with pytest.raises(ConnectionClosedOK) as over:
            await far.receive()
        assert isinstance(over.value, anyio.EndOfStream)
        assert (over.value.code, over.value.reason) == (sent, reason)
        with pytest.raises(ConnectionClosedError) as gone:
            await far.send("x")
        assert isinstance(gone.value, anyio.BrokenResourceError)
        with pytest.raises(ConnectionClosedError):
            await far.ping()
        for use in (near.receive, lambda: near.send("x"), near.ping):
            with pytest.raises(ConnectionClosedLocally) as closed:
                await use()
            assert isinstance(closed.value, anyio.ClosedResourceError)
        assert [event async for event in near] == []
        await near.close()
        await far.close()
        await near.wait_closed()
        await far.wait_closed()


async def test_close_says_1000_by_default(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        await client.close()
        await server.wait_closed()
        assert (server.close_code, server.close_reason) == (1000, "Connection closed")


@pytest.mark.parametrize("code", [0, 999, 1004, 1016, 2999, 5000, 65536])
async def test_a_code_that_may_not_be_sent_is_a_value_error(pairs: Pairs, code: int) -> None:
    async with pairs.connect() as (client, server):
        with pytest.raises(ValueError, match=f"got {code}"):
            await client.close(code)
        with pytest.raises(ValueError, match="at most 123 bytes in UTF-8, got 124"):
            await client.close(1000, "é" * 62)
        await client.send("still open")
        assert await server.receive_text() == "still open"


@pytest.mark.parametrize("code", [1014, 3000, 4999])
async def test_codes_of_the_registry_and_private_ones_may_be_sent(pairs: Pairs, code: int) -> None:
    async with pairs.connect() as (client, server):
        await server.close(code)
        assert client.close_code == server.close_code == code


async def test_messages_before_a_close_are_received(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server), anyio.create_task_group() as tg:

        async def send() -> None:
            for number in range(50):
                await client.send(str(number))
            await client.close(4000)

        tg.start_soon(send)
        await server.wait_closed()
        texts = [event.data async for event in server if isinstance(event, Message)]
        assert texts == [str(number) for number in range(50)]


async def test_messages_after_the_own_close_are_dropped(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        for _ in range(10):
            await server.send("not for a closed end")
        await client.close(4000)
        with pytest.raises(ConnectionClosedLocally):
            await client.receive()
        assert client.close_code == server.close_code == 4000


async def test_closing_at_the_same_time(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        async with anyio.create_task_group() as tg:
            tg.start_soon(client.close, 4001, "client")
            tg.start_soon(server.close, 4002, "server")
            tg.start_soon(client.close, 4001, "client")
        assert {client.close_code, server.close_code} <= {4001, 4002}
        assert client.state is server.state is ConnectionState.CLOSED


async def test_a_receive_under_way_ends_when_the_same_side_closes(pairs: Pairs) -> None:
    async with pairs.connect() as (client, _), anyio.create_task_group() as tg:
        ends: list[str] = []

        async def receive() -> None:
            with pytest.raises(ConnectionClosedLocally):
                await client.receive()
            ends.append("receive")

        async def iterate() -> None:
            async for _ in client:
                pytest.fail("nothing was sent")
            ends.append("iterate")

        tg.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await client.close(1000)
        tg.start_soon(iterate)
        await anyio.wait_all_tasks_blocked()
        assert sorted(ends) == ["iterate", "receive"]


async def test_a_lost_connection_is_1006(pairs: Pairs) -> None:
    async with pairs.connect() as (client, server):
        await server.send("before")
        await server.abort()
        assert await client.receive_text() == "before"
        with pytest.raises(ConnectionClosedError) as lost:
            async for _ in client:
                pytest.fail("nothing more was sent")
        assert lost.value.code == client.close_code == 1006
        assert client.state is ConnectionState.CLOSED
        with pytest.raises(ConnectionClosedError):
            await client.receive()
        with pytest.raises(ConnectionClosedError):
            await client.send("x")
        await client.wait_closed()
        await client.close()


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_message_over_the_limit_is_1009(
    pairs: Pairs, final: bool, compression: Deflate | None
) -> None:
    server_side = Settings(compression=compression, max_message_size=1000)
    client_side = Settings(compression=compression)
    async with pairs.connect(client=client_side, server=server_side) as (client, server):
        await client.send("é" * 500)
        assert await server.receive_text() == "é" * 500
        if final:
            await client.send("é" * 500 + "!")
        else:
            for _ in range(11):
                await client.send(b"x" * 100, final=False)
        with pytest.raises(ConnectionClosedError, match="the limit is 1000") as caught:
            await server.receive()
        assert caught.value.code == server.close_code == 1009
        with pytest.raises(ConnectionClosedOK) as seen:
            await client.receive()
        assert seen.value.code == client.close_code == 1009


async def test_what_the_connection_says_of_itself(pairs: Pairs) -> None:
    async def filter(request: Any) -> str:
        assert request.target == "/"
        return "two"

    async with pairs.connect(filter=filter, subprotocols=["one", "two"]) as (client, server):
        assert client.subprotocol == server.subprotocol == "two"
        assert client.request.subprotocols == server.request.subprotocols == ["one", "two"]
        assert client.response.status == server.response.status == 101
        assert client.response.header("sec-websocket-protocol") == "two"
        assert client.extensions == server.extensions == ()
        assert server.request.secure is client.request.secure is pairs.secure
        assert "/ OPEN" in repr(client)
        if pairs.kind == "memory":
            assert client.local_address is client.remote_address is None
            with pytest.raises(anyio.TypedAttributeLookupError):
                _ = client.raw_socket
            assert client.extra(SocketAttribute.raw_socket, None) is None
        else:
            assert client.raw_socket.fileno() >= 0
        if pairs.kind in ("tcp", "tls", "stream"):
            assert client.local_address == server.remote_address
            assert client.remote_address == server.local_address
            assert client.extra(SocketAttribute.remote_port) == client.remote_address[1]  # type: ignore[index]


async def test_the_bodys_own_exception_comes_out_as_it_is(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    own = KeyError("own")
    codes = []

    async def serve() -> None:
        async with await open_websocket_server(far) as server:
            await server.wait_closed()
            codes.append(server.close_code)

    async with anyio.create_task_group() as tg:
        tg.start_soon(serve)
        with pytest.raises(KeyError) as caught:
            async with await open_websocket_client(near, "host", "/"):
                raise own
        assert caught.value is own
    assert codes == [1011]


async def test_a_scope_is_entered_once(pairs: Pairs) -> None:
    near, far = await pairs.streams()

    async def serve() -> None:
        async with open_websocket_server(far) as server:
            await server.wait_closed()

    async with anyio.create_task_group() as tg:
        tg.start_soon(serve)
        scope = open_websocket_client(near, "host", "/")
        async with scope:
            pass
        with pytest.raises(RuntimeError, match="entered before"):
            async with scope:
                pytest.fail("entered twice")


async def test_closing_reads_on_from_the_bound_of_the_read_ahead(pairs: Pairs, codec: Any) -> None:
    settings = Settings(ping_interval=None, max_read_ahead=128, close_timeout=2)
    async with (
        pairs.connect(client=settings) as (client, server),
        anyio.create_task_group() as task_group,
    ):

        async def push() -> None:
            with suppress(anyio.BrokenResourceError):
                for _ in range(50):
                    await server.send(b"x" * 1000)

        task_group.start_soon(push)
        # Until it has read what it may.
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        await client.close(1000)
        assert client.close_code == 1000


async def test_a_close_waits_no_longer_than_close_timeout(pairs: Pairs) -> None:
    settings = Settings(ping_interval=None, close_timeout=0.05)

    async def one(
        behave: Callable[[Stream], Coroutine[Any, Any, None]], code: int, clog: bool
    ) -> None:
        near, far = await pairs.streams()
        await near.send(REQUEST)
        async with open_websocket_server(far, settings=settings) as server:
            await near.receive()
            if clog:
                with anyio.move_on_after(0.05):
                    while True:
                        await server.send(bytes(1 << 20))
            async with anyio.create_task_group() as tg:
                tg.start_soon(behave, near)
                await server.close(4000)
                tg.cancel_scope.cancel()
            assert server.close_code == code
            assert server.state is ConnectionState.CLOSED
            with pytest.raises(anyio.ClosedResourceError):
                await server.send("too late")
        await anyio.aclose_forcefully(near)

    async def answer_and_stay(near: Stream) -> None:
        await near.send(frame(8, close_payload(4000), masked=True))
        await anyio.sleep_forever()

    async def nothing(near: Stream) -> None:
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        tg.start_soon(one, answer_and_stay, 4000, False)
        tg.start_soon(one, nothing, 1006, False)
        if pairs.kind != "memory":
            tg.start_soon(one, nothing, 1006, True)


async def test_a_scope_that_failed_is_not_entered_again(pairs: Pairs) -> None:
    near, far = await pairs.streams()
    for scope in (open_websocket_client(near, "host", "/"), open_websocket_server(far)):
        with anyio.CancelScope() as cancelled:
            cancelled.cancel()
            async with scope:
                pytest.fail("entered where all is cancelled")
        with pytest.raises(RuntimeError, match="entered before"):
            async with scope:
                pytest.fail("entered twice")


async def test_a_closed_stream_is_told(pairs: Pairs) -> None:
    for streams in (await pairs.streams(), await pairs.streams()):
        for stream in streams:
            await cut(stream)
        for scope in (
            open_websocket_client(streams[0], "host", "/"),
            open_websocket_server(streams[1]),
        ):
            with pytest.raises(HandshakeError, match="the connection was lost in the handshake"):
                async with scope:
                    pytest.fail("the stream is closed")


@pytest.mark.parametrize("end", ["send_eof", "aclose"])
async def test_what_a_stream_was_given_goes_before_its_end(end: str) -> None:
    near, far = memory_pair()
    transport = StreamTransport(near)
    transport.write(b"last")
    await getattr(transport, end)()
    assert await far.receive() == b"last"
    with pytest.raises(anyio.EndOfStream):
        await far.receive()
