"""The codec in C: it is the pure one, but for its speed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncwebsockets import Deflate
from asyncwebsockets.codec import IMPLEMENTATION, CodecError
from asyncwebsockets.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    TextMessage,
)

from .differential import IMPLEMENTATIONS, check_decoding, make
from .frames import frame, parse_frame
from .fuzz.codec import check, frames
from .test_codec import BAD_FRAMES, DEFLATES

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

if IMPLEMENTATION != "native":
    pytest.skip(
        "the native codec was not built: install a C compiler, and the project anew",
        allow_module_level=True,
    )

ROOMS = st.lists(st.integers(1, 100_000), max_size=3)
CUTS = st.lists(st.integers(0, 1 << 20), max_size=20)


@given(source=st.randoms(use_true_random=False), client=st.booleans(), cuts=CUTS, rooms=ROOMS)
def test_frames_mean_the_same(
    source: random.Random, client: bool, cuts: Sequence[int], rooms: Sequence[int]
) -> None:
    data = frames(source, masked=not client, compressed=False)
    check_decoding(data, client=client, cuts=cuts, rooms=rooms)


@given(
    source=st.randoms(use_true_random=False),
    client=st.booleans(),
    cuts=CUTS,
    rooms=ROOMS,
    options=DEFLATES,
)
def test_compressed_frames_mean_the_same(
    source: random.Random,
    client: bool,
    cuts: Sequence[int],
    rooms: Sequence[int],
    options: Deflate | None,
) -> None:
    data = frames(source, masked=not client, compressed=True)
    check_decoding(data, client=client, cuts=cuts, rooms=rooms, options=options)


@given(data=st.binary(max_size=200))
def test_any_bytes_mean_the_same(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize("by_byte", [False, True])
@pytest.mark.parametrize(("data", "code"), BAD_FRAMES)
def test_each_broken_rule_is_told_in_the_same_words(data: bytes, code: int, by_byte: bool) -> None:
    trace = check_decoding(data, client=False, cuts=range(len(data)) if by_byte else ())
    assert trace[-1][0] == code


@pytest.mark.parametrize(
    "size", [0, 1, 3, 4, 7, 8, 31, 32, 33, 125, 126, 65_535, 65_536, 200_001, 600_002]
)
@pytest.mark.parametrize("opcode", [1, 2])
def test_sizes_at_the_edges(size: int, opcode: int) -> None:
    payload = bytes(b"a%c" % (65 + size % 26) * size)[:size]
    for client in (False, True):
        data = frame(opcode, payload, masked=not client) * 2
        for cuts in ((), (1, 2, 3), range(0, len(data), max(1, len(data) // 50))):
            check_decoding(data, client=client, cuts=cuts)


SENT = st.lists(
    st.one_of(
        st.tuples(st.text(max_size=200), st.booleans()),
        st.tuples(st.binary(max_size=200), st.booleans()),
        st.builds(BytesMessage, st.binary(), message_finished=st.booleans()),
        st.builds(TextMessage, st.text(), message_finished=st.booleans()),
        st.builds(Ping, st.binary(max_size=130)),
        st.builds(Pong, st.binary(max_size=130)),
        st.builds(
            CloseConnection,
            st.sampled_from([1000, 1001, 1005, 1006, 1015, 3000, 4999]),
            st.one_of(st.none(), st.text(max_size=130)),
        ),
    ),
    max_size=8,
)


def encode(implementation: Any, client: bool, options: Deflate | None, sent: Sequence[Any]) -> Any:
    """Return the frames that were made, without their masks, what could not be, and the counts."""
    codec = make(implementation, client, options)
    made: list[Any] = []
    for item in sent:
        try:
            if isinstance(item, Event):
                data = codec.encode(item)
            else:
                data = codec.encode_message(*item)
        except (TypeError, ValueError) as exc:
            made.append((type(exc), str(exc)))
            continue
        assert type(data) is bytes
        assert bool(data[1] & 0x80) == client
        first, payload, rest = parse_frame(data)
        assert not rest
        made.append((first, len(data), payload))
    return [*made, codec.counts]


@given(client=st.booleans(), options=DEFLATES, sent=SENT)
def test_what_is_sent_is_the_same(client: bool, options: Deflate | None, sent: list[Any]) -> None:
    pure, native = (encode(name, client, options, sent) for name in IMPLEMENTATIONS)
    assert native == pure


@pytest.mark.parametrize("data", [1, None, 1.5, object(), ["x"]])
def test_other_types_are_refused(data: Any) -> None:
    codec = make("native", True, None)
    with pytest.raises(TypeError):
        codec.receive_data("text" if data == 1 else data)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        codec.encode_message(data, True)
    with pytest.raises(TypeError):
        codec.encode(data)
    with pytest.raises(TypeError):
        codec.repeat("text" if data == 1 else data)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        codec.next_events("much")  # type: ignore[arg-type]


def test_a_header_announces_more_than_there_is_memory_for() -> None:
    codec = make("native", False, None)
    codec.receive_data(frame(2, length=b"\x7f" + ((1 << 63) - 1).to_bytes(8, "big"), masked=True))
    tracemalloc.start()
    try:
        ((event, cost),), total = codec.next_events()
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    assert isinstance(event, BytesMessage)
    assert event.data == b""
    assert cost == total == 128
    assert codec.announced == (1 << 63) - 1


def test_no_mask_comes_twice() -> None:
    codecs = [make("native", True, None) for _ in range(2)]
    masks = {codec.encode_message(b"", True)[2:6] for _ in range(5_000) for codec in codecs}
    # Among 10,000 of 2**32 a pair is likely to be met once in 86 runs, three are not.
    assert len(masks) >= 9_998


FORKS = """
import os
from asyncwebsockets.codec import make_codec

codec = make_codec("client", (), "native")
codec.encode_message(b"", True)
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, codec.encode_message(b"", True))
    os._exit(0)
theirs = os.read(reading, 100)
ours = codec.encode_message(b"", True)
os.wait()
assert len(theirs) == len(ours) == 6
assert theirs != ours, ours
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_process_has_masks_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("choice", "words"), [("pure", "pure"), ("native", "native"), ("", "")])
def test_the_environment_chooses(choice: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from asyncwebsockets.codec import *; print(IMPLEMENTATION)"],
        env={**os.environ, "ASYNCWEBSOCKETS_CODEC": choice},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().strip() == (words or IMPLEMENTATION)


@pytest.mark.parametrize("missing", ["_native", "_nativeloop"])
@pytest.mark.parametrize("choice", ["native", ""])
def test_what_was_not_built_is_missed_only_where_it_is_insisted_on(
    choice: str, missing: str
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.modules['asyncwebsockets.{missing}'] = None;"
            "from asyncwebsockets.codec import *; print(IMPLEMENTATION)",
        ],
        env={**os.environ, "ASYNCWEBSOCKETS_CODEC": choice},
        capture_output=True,
        check=False,
    )
    if choice:
        assert b"what is in C was not built" in done.stderr
    else:
        assert (done.stdout, done.stderr) == (b"pure\n", b"")


def test_a_choice_that_there_is_not_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import asyncwebsockets"],
        env={**os.environ, "ASYNCWEBSOCKETS_CODEC": "fast"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"expected native or pure, got 'fast'" in done.stderr


def everything(options: Deflate | None) -> None:
    """Go once through all that allocates."""
    data = b"".join(
        frame(opcode, payload, fin=fin, masked=True)
        for opcode, payload, fin in (
            (1, "größer".encode(), True),
            (2, b"x" * 300, False),
            (0, b"y" * 70_000, True),
            (9, b"ping", True),
            (10, b"", True),
            (8, b"\x03\xe8bye", True),
        )
    )
    server, client = make("native", False, options), make("native", True, options)
    for chunk in (data[:1000], data[1000:]):
        server.receive_data(chunk)
        while events := server.next_events(50)[0]:
            for event, _ in events:
                client.encode(event)
                if isinstance(event, Message):
                    server.encode_message(event.data, event.message_finished)
    for wrong in (b"\x88\x81\0\0\0\0\x03", b"\x81\x81\0\0\0\0\xff", b"\xff\xff", b"\xb1\x80aaaa"):
        broken = make("native", False, options)
        broken.receive_data(wrong)
        with pytest.raises(CodecError):
            broken.next_events()
    for unsendable in ("\ud800", 1, None):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            client.encode_message(unsendable, True)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [None, Deflate(), Deflate(threshold=100)])
def test_nothing_is_kept(options: Deflate | None) -> None:
    rounds = 1000
    for _ in range(10):
        everything(options)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(rounds):
        everything(options)
    gc.collect()
    # What grows by one object a round has grown by a thousand.
    assert sys.getallocatedblocks() - before < rounds // 2
