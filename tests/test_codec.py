"""The codec: what comes in, in whatever pieces, and what goes out."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncwebsockets import Deflate
from asyncwebsockets.codec import Codec, CodecError
from asyncwebsockets.deflate import PerMessageDeflate
from asyncwebsockets.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    TextMessage,
)

from .conftest import CODECS
from .frames import close_payload, frame, parse_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def agreed(options: Deflate) -> tuple[PerMessageDeflate, PerMessageDeflate]:
    """Return a client's and a server's extension after their negotiation."""
    client, server = PerMessageDeflate(options), PerMessageDeflate(options)
    answer = server.accept(f"permessage-deflate; {client.offer()}")
    assert answer is not None
    client.finalize(f"permessage-deflate; {answer}" if answer else "permessage-deflate")
    return client, server


def make_pair(made: Any, options: Deflate | None) -> tuple[Codec, Codec]:
    if options is None:
        return made(client=True), made(client=False)
    client, server = agreed(options)
    return made(client=True, extensions=[client]), made(client=False, extensions=[server])


def read(codec: Codec, data: bytes, cuts: Sequence[int] = ()) -> list[Event]:
    """Feed bytes in pieces and return all events."""
    events: list[Event] = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in zip(edges, edges[1:], strict=False):
        codec.receive_data(data[start:end])
        events += drain(codec)
    return events


def drain(codec: Codec) -> Iterator[Event]:
    """Take out what there is."""
    while events := codec.next_events()[0]:
        for event, _ in events:
            yield event


def join(events: Sequence[Event]) -> list[Event]:
    """Join the pieces of messages, as a receiver does."""
    joined: list[Event] = []
    pieces: list[Any] = []
    for event in events:
        if not isinstance(event, Message):
            joined.append(event)
            continue
        pieces.append(event.data)
        if event.message_finished:
            joined.append(type(event)(pieces[0][:0].join(pieces)))
            pieces = []
    return joined


DEFLATES = st.one_of(
    st.none(),
    st.builds(
        Deflate,
        server_max_window_bits=st.integers(9, 15),
        client_max_window_bits=st.integers(9, 15),
        server_no_context_takeover=st.booleans(),
        client_no_context_takeover=st.booleans(),
        level=st.integers(-1, 9),
        mem_level=st.integers(1, 9),
        threshold=st.integers(0, 20),
    ),
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))

# A message is what the pieces of one kind are joined to; between them come control frames.
CONTROL = st.one_of(
    st.builds(Ping, st.binary(max_size=125)), st.builds(Pong, st.binary(max_size=125))
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 5))):
        kind, data = draw(
            st.sampled_from([(TextMessage, TEXT), (BytesMessage, st.binary(max_size=300))])
        )
        pieces = draw(st.lists(data, min_size=1, max_size=4))
        for piece in pieces[:-1]:
            events.append(kind(piece, False, False))
            events += draw(st.lists(CONTROL, max_size=1))
        events.append(kind(pieces[-1]))
        events += draw(st.lists(CONTROL, max_size=2))
    if draw(st.booleans()):
        events.append(CloseConnection(draw(st.sampled_from([1000, 1014, 3000, 4999])), "é"))
    return events


@pytest.mark.parametrize("made", CODECS)
@given(
    events=conversations(),
    options=DEFLATES,
    cuts=st.lists(st.integers(0, 10_000), max_size=30),
    upwards=st.booleans(),
)
def test_any_split_of_the_bytes_gives_what_was_sent(
    made: Any, events: list[Event], options: Deflate | None, cuts: list[int], upwards: bool
) -> None:
    client, server = make_pair(made, options)
    sender, receiver = (client, server) if upwards else (server, client)
    data = b"".join(sender.encode(event) for event in events)
    came = read(receiver, data, cuts)
    expected = join(events)
    # Control frames may come between the pieces of a message, which ends after them.
    controls = (Ping, Pong, CloseConnection)
    assert [e for e in join(came) if isinstance(e, Message)] == [
        e for e in expected if isinstance(e, Message)
    ]
    assert [e for e in came if isinstance(e, controls)] == [
        e for e in events if isinstance(e, controls)
    ]
    for event in came:
        if isinstance(event, BytesMessage):
            assert type(event.data) is bytes


@pytest.mark.parametrize("made", CODECS)
@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=10))
def test_any_bytes_are_events_or_a_codec_error_whatever_the_split(
    made: Any, data: bytes, cuts: list[int]
) -> None:
    def outcome(cuts: Sequence[int]) -> tuple[list[Event], int | None]:
        codec = made(client=True)
        events: list[Event] = []
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        try:
            for start, end in zip(edges, edges[1:], strict=False):
                codec.receive_data(data[start:end])
                for event in drain(codec):
                    events.append(event)
                    if isinstance(event, CloseConnection):
                        return events, None
        except CodecError as exc:
            return events, exc.code
        return events, None

    whole, whole_error = outcome(())
    split, split_error = outcome(cuts)
    assert whole_error == split_error
    assert whole_error in (None, 1002, 1007)
    finished = [e for e in join(split) if isinstance(e, Message)]
    assert finished == [e for e in join(whole) if isinstance(e, Message)]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("client", [True, False])
def test_frames_are_encoded_with_the_shortest_length(made: Any, size: int, client: bool) -> None:
    data = made(client=client).encode(BytesMessage(b"x" * size))
    first, payload, rest = parse_frame(data)
    assert (first, payload, rest) == (0x82, b"x" * size, b"")
    assert bool(data[1] & 0x80) is client
    head = 2 if size < 126 else 4 if size < 65_536 else 10
    assert len(data) == head + (4 if client else 0) + size


@pytest.mark.parametrize("made", CODECS)
def test_masks_differ_from_frame_to_frame(made: Any) -> None:
    codec = made(client=True)
    masks = {codec.encode(BytesMessage(b"x"))[2:6] for _ in range(100)}
    assert len(masks) > 90


BAD_FRAMES: list[Any] = [
    pytest.param(frame(3, masked=True), 1002, id="reserved data opcode"),
    pytest.param(frame(0xB, masked=True), 1002, id="reserved control opcode"),
    pytest.param(frame(1, rsv=4, masked=True), 1002, id="rsv1 without an extension"),
    pytest.param(frame(1, rsv=2, masked=True), 1002, id="rsv2"),
    pytest.param(frame(1, rsv=1, masked=True), 1002, id="rsv3"),
    pytest.param(frame(9, rsv=4, masked=True), 1002, id="rsv1 on a control frame"),
    pytest.param(frame(9, fin=False, masked=True), 1002, id="fragmented control frame"),
    pytest.param(frame(9, b"x" * 126, masked=True), 1002, id="long control frame"),
    pytest.param(frame(0, masked=True), 1002, id="continuation of nothing"),
    pytest.param(
        frame(1, fin=False, masked=True) + frame(1, masked=True), 1002, id="message in a message"
    ),
    pytest.param(frame(1, masked=False), 1002, id="unmasked"),
    pytest.param(frame(1, b"x", length=b"\x7e\x00\x01", masked=True), 1002, id="16-bit length"),
    pytest.param(
        frame(1, b"x", length=b"\x7f" + (65_535).to_bytes(8, "big"), masked=True),
        1002,
        id="64-bit length that fits 16",
    ),
    pytest.param(frame(1, length=b"\x7f\x80" + b"\0" * 7, masked=True), 1002, id="64th bit"),
    pytest.param(frame(8, b"\x03", masked=True), 1002, id="close of one byte"),
    pytest.param(frame(1, b"\xff", masked=True), 1007, id="bad UTF-8"),
    pytest.param(frame(1, b"\xed\xa0\x80", masked=True), 1007, id="surrogate"),
    pytest.param(frame(1, b"\xc3", masked=True), 1007, id="half a character"),
    pytest.param(frame(1, b"\xf4\x90", fin=False, masked=True), 1007, id="beyond Unicode, early"),
    pytest.param(frame(8, close_payload(1000) + b"\xff", masked=True), 1007, id="bad reason"),
    *(
        pytest.param(frame(8, close_payload(code), masked=True), 1002, id=f"close {code}")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
    ),
]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize("by_byte", [False, True])
@pytest.mark.parametrize(("data", "code"), BAD_FRAMES)
def test_a_broken_rule_is_a_codec_error(made: Any, data: bytes, code: int, by_byte: bool) -> None:
    codec = made(client=False)
    with pytest.raises(CodecError) as caught:
        read(codec, data, range(len(data)) if by_byte else ())
    assert caught.value.code == code
    assert caught.value.reason


@pytest.mark.parametrize("made", CODECS)
def test_a_client_refuses_masked_frames(made: Any) -> None:
    with pytest.raises(CodecError) as caught:
        read(made(client=True), frame(1, b"x", masked=True))
    assert caught.value.code == 1002


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize("code", [1000, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 4999])
def test_valid_close_codes(made: Any, code: int) -> None:
    data = frame(8, close_payload(code, "ré"), masked=True)
    assert read(made(client=False), data) == [CloseConnection(code, "ré")]


@pytest.mark.parametrize("made", CODECS)
def test_an_empty_close_is_1005_and_is_echoed_empty(made: Any) -> None:
    codec = made(client=False)
    (event,) = read(codec, frame(8, masked=True))
    assert event == CloseConnection(1005, "")
    assert codec.encode(event) == frame(8, masked=False)


@pytest.mark.parametrize("made", CODECS)
def test_a_header_announces_what_is_to_come(made: Any) -> None:
    codec = made(client=False)
    assert codec.announced == 0
    data = frame(2, b"x" * 1000, masked=True)
    (event,) = read(codec, data[:8])
    assert event == BytesMessage(b"", False, False)
    assert codec.announced == 1000
    assert read(codec, data[8:18]) == [BytesMessage(b"x" * 10, False, False)]
    assert codec.announced == 990
    assert read(codec, data[18:]) == [BytesMessage(b"x" * 990)]
    assert codec.announced == 0


def raw_deflate(data: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush(flush)


@pytest.mark.parametrize("made", CODECS)
def test_a_bomb_is_inflated_in_slices(made: Any) -> None:
    _, codec = make_pair(made, Deflate())
    bomb = frame(2, raw_deflate(b"\0" * 200_000_000)[:-4], rsv=4, masked=True)
    assert len(bomb) < 250_000
    codec.receive_data(bomb)
    tracemalloc.start()
    try:
        for _ in range(20):
            ((event, cost),), _ = codec.next_events(1)
            assert isinstance(event, BytesMessage)
            assert cost == len(event.data)
            assert len(event.data) <= 64 * 1024
            assert not event.message_finished
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize("size", [64 * 1024, 128 * 1024, 64 * 1024 - 1, 64 * 1024 + 1])
def test_slices_end_where_the_message_does(made: Any, size: int) -> None:
    client, server = make_pair(made, Deflate())
    for _ in range(2):
        events = read(server, client.encode(BytesMessage(b"a" * size)))
        assert join(events) == [BytesMessage(b"a" * size)]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize("behind", [b"", b"\x00"])
def test_a_final_block_does_not_end_the_extension(made: Any, behind: bytes) -> None:
    # RFC 7692 section 7.2.3.4, where one byte follows for the header of an empty block.
    _, codec = make_pair(made, Deflate())
    payload = raw_deflate(b"Hello", zlib.Z_FINISH) + behind
    for _ in range(3):
        data = frame(1, payload, rsv=4, masked=True)
        assert join(read(codec, data)) == [TextMessage("Hello")]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize(("behind", "last"), [(b"", b""), (b"", b"\x00"), (b"\x00", b"")])
def test_a_final_block_may_be_followed_by_an_empty_frame(
    made: Any, behind: bytes, last: bytes
) -> None:
    _, codec = make_pair(made, Deflate())
    payload = raw_deflate(b"Hello", zlib.Z_FINISH) + behind
    first = frame(1, payload, rsv=4, fin=False, masked=True)
    for _ in range(2):
        assert join(read(codec, first + frame(0, last, masked=True))) == [TextMessage("Hello")]
    data = frame(1, raw_deflate(b"World")[:-4], rsv=4, masked=True)
    assert join(read(codec, data)) == [TextMessage("World")]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize(
    ("behind", "text"),
    [
        (b"", "Hello"),
        (b"\x00", "Hello"),
        (raw_deflate(b", World")[:-4], "Hello, World"),
        (raw_deflate(b"!", zlib.Z_FINISH) + b"\x00", "Hello!"),
    ],
)
def test_a_final_block_means_the_same_wherever_its_message_is_cut(
    made: Any, behind: bytes, text: str
) -> None:
    payload = raw_deflate(b"Hello", zlib.Z_FINISH) + behind
    data = frame(1, payload, rsv=4, masked=True)
    data += frame(1, raw_deflate(b"next")[:-4], rsv=4, masked=True)
    for first in range(len(data)):
        for second in range(first, min(first + 4, len(data))):
            _, codec = make_pair(made, Deflate())
            assert join(read(codec, data, [first, second])) == [
                TextMessage(text),
                TextMessage("next"),
            ]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize(
    "payloads",
    [
        # RFC 7692 sections 7.2.3.1 to 7.2.3.5, and an empty message.
        [b"\xf2\x48\xcd\xc9\xc9\x07\x00"],
        [b"\xf2\x48\xcd\xc9\xc9\x07\x00", b"\xf2\x00\x11\x00\x00"],
        [b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"],
        [b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"],
        [b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"],
    ],
)
def test_the_examples_of_rfc_7692(made: Any, payloads: list[bytes]) -> None:
    _, codec = make_pair(made, Deflate())
    for payload in payloads:
        data = frame(1, payload, rsv=4, masked=True)
        assert join(read(codec, data)) == [TextMessage("Hello")]
    assert join(read(codec, frame(1, b"\x00", rsv=4, masked=True))) == [TextMessage("")]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize("side", [0, 1])
def test_compression_makes_messages_smaller(made: Any, side: int) -> None:
    codec = make_pair(made, Deflate())[side]
    first = codec.encode(TextMessage("abcdefgh" * 100))
    assert len(first) < 40
    # The second one refers to the first.
    assert len(codec.encode(TextMessage("abcdefgh" * 100))) < len(first)


@pytest.mark.parametrize("made", CODECS)
def test_compressed_and_plain_messages_may_alternate(made: Any) -> None:
    client, server = make_pair(made, Deflate(threshold=10))
    short = client.encode(TextMessage("short"))
    long = client.encode(TextMessage("long enough to be compressed"))
    assert not short[0] & 0x40
    assert long[0] & 0x40
    events = read(server, short + long + short)
    assert [e.data for e in join(events)] == [  # type: ignore[attr-defined]
        "short",
        "long enough to be compressed",
        "short",
    ]


@pytest.mark.parametrize("made", CODECS)
@pytest.mark.parametrize(
    "data",
    [
        frame(1, b"\xff\xff\xff", rsv=4, masked=True),
        frame(2, raw_deflate(b"x" * 100)[:-4][:3] + b"\xff\xff\xff\xff", rsv=4, masked=True),
    ],
)
def test_broken_deflate_data_is_1007(made: Any, data: bytes) -> None:
    _, codec = make_pair(made, Deflate())
    with pytest.raises(CodecError) as caught:
        read(codec, data)
    assert caught.value.code == 1007


@pytest.mark.parametrize("made", CODECS)
def test_rsv1_belongs_to_the_first_frame(made: Any) -> None:
    _, codec = make_pair(made, Deflate())
    with pytest.raises(CodecError) as caught:
        read(codec, frame(1, fin=False, masked=True) + frame(0, rsv=4, masked=True))
    assert caught.value.code == 1002


@pytest.mark.parametrize("made", CODECS)
def test_fragments_can_be_inflated_as_they_come(made: Any) -> None:
    client, server = make_pair(made, Deflate())
    events = read(server, client.encode(TextMessage("abc" * 100, False, False)))
    assert "".join(e.data for e in events) == "abc" * 100  # type: ignore[attr-defined]
    assert join(events + read(server, client.encode(TextMessage("")))) == [TextMessage("abc" * 100)]


@pytest.mark.parametrize("made", CODECS)
@given(options=DEFLATES, data=st.binary(max_size=2000))
@settings(max_examples=50)
def test_without_context_takeover_each_message_stands_alone(
    made: Any, options: Deflate | None, data: bytes
) -> None:
    options = Deflate(
        client_no_context_takeover=True,
        client_max_window_bits=options.client_max_window_bits if options else 15,
        threshold=0,
    )
    client, _ = make_pair(made, options)
    client.encode(BytesMessage(data))
    _, fresh = make_pair(made, options)
    assert join(read(fresh, client.encode(BytesMessage(data)))) == [BytesMessage(data)]


@pytest.mark.parametrize("made", CODECS)
def test_only_what_can_be_sent_is_encoded(made: Any) -> None:
    with pytest.raises(TypeError, match="expected a message, ping, pong or close"):
        made(client=True).encode(Event())
