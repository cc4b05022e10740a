"""The negotiation of permessage-deflate (RFC 7692 section 7.1)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.extensions import PerMessageDeflate as WsprotoDeflate

from asyncwebsockets import Deflate
from asyncwebsockets.deflate import PerMessageDeflate

NAME = "permessage-deflate"


@pytest.mark.parametrize(
    ("options", "offer", "answer"),
    [
        (Deflate(), "", ""),
        (Deflate(), "; client_max_window_bits", "client_max_window_bits=15"),
        (Deflate(), "; client_max_window_bits=10", "client_max_window_bits=10"),
        (Deflate(), "; client_max_window_bits=8", "client_max_window_bits=8"),
        (Deflate(), '; client_max_window_bits="10"', "client_max_window_bits=10"),
        (Deflate(), "; server_max_window_bits=10", "server_max_window_bits=10"),
        (Deflate(), "; server_max_window_bits=8", None),
        (Deflate(), "; server_max_window_bits", None),
        (Deflate(), "; server_max_window_bits=16", None),
        (Deflate(), "; server_max_window_bits=010", None),
        (Deflate(), "; server_max_window_bits=\u0661\u0662", None),
        (Deflate(), "; server_no_context_takeover", "server_no_context_takeover"),
        (Deflate(), "; client_no_context_takeover", "client_no_context_takeover"),
        (Deflate(), "; server_no_context_takeover=1", None),
        (Deflate(), "; unknown", None),
        (Deflate(), "; client_max_window_bits; client_max_window_bits", None),
        (Deflate(), " nonsense", None),
        (Deflate(server_max_window_bits=12), "", "server_max_window_bits=12"),
        (
            Deflate(server_max_window_bits=12),
            "; server_max_window_bits=10",
            "server_max_window_bits=10",
        ),
        (Deflate(client_max_window_bits=12), "", None),
        (
            Deflate(client_max_window_bits=12),
            "; client_max_window_bits",
            "client_max_window_bits=12",
        ),
        (Deflate(server_no_context_takeover=True), "", "server_no_context_takeover"),
        (Deflate(client_no_context_takeover=True), "", "client_no_context_takeover"),
    ],
)
def test_what_a_server_answers(options: Deflate, offer: str, answer: str | None) -> None:
    extension = PerMessageDeflate(options)
    assert extension.accept(NAME + offer) == answer
    assert extension.enabled() is (answer is not None)


def test_a_declined_offer_does_not_change_the_next() -> None:
    extension = PerMessageDeflate(Deflate(client_max_window_bits=12))
    assert extension.accept(f"{NAME}; server_max_window_bits=9") is None
    assert extension.accept(f"{NAME}; client_max_window_bits=15") == "client_max_window_bits=12"


@pytest.mark.parametrize(
    ("options", "offer"),
    [
        (Deflate(), "client_max_window_bits"),
        (Deflate(client_max_window_bits=9), "client_max_window_bits=9"),
        (Deflate(server_max_window_bits=9), "server_max_window_bits=9; client_max_window_bits"),
        (
            Deflate(server_no_context_takeover=True, client_no_context_takeover=True),
            "server_no_context_takeover; client_no_context_takeover; client_max_window_bits",
        ),
    ],
)
def test_what_a_client_offers(options: Deflate, offer: str) -> None:
    extension = PerMessageDeflate(options)
    assert extension.offer() == offer
    assert not extension.enabled()


@pytest.mark.parametrize(
    ("options", "answer", "fits"),
    [
        (Deflate(), "", True),
        (Deflate(), "; server_max_window_bits=8", True),
        (Deflate(), "; client_max_window_bits=8", True),
        (Deflate(), "; server_no_context_takeover; client_no_context_takeover", True),
        (Deflate(), "; client_max_window_bits", False),
        (Deflate(), "; server_max_window_bits=7", False),
        (Deflate(), "; server_no_context_takeover; server_no_context_takeover", False),
        (Deflate(), "; unknown=1", False),
        (Deflate(client_max_window_bits=10), "; client_max_window_bits=11", False),
        (Deflate(client_max_window_bits=10), "; client_max_window_bits=9", True),
        (Deflate(client_max_window_bits=10), "", True),
        (Deflate(server_max_window_bits=10), "; server_max_window_bits=11", False),
        (Deflate(server_max_window_bits=10), "", False),
        (Deflate(server_max_window_bits=10), "; server_max_window_bits=10", True),
        (Deflate(server_no_context_takeover=True), "", False),
        (Deflate(server_no_context_takeover=True), "; server_no_context_takeover", True),
    ],
)
def test_what_a_client_takes(options: Deflate, answer: str, fits: bool) -> None:
    extension = PerMessageDeflate(options)
    if fits:
        extension.finalize(NAME + answer)
    else:
        with pytest.raises(ValueError):
            extension.finalize(NAME + answer)
    assert extension.enabled() is fits


@given(
    st.builds(
        Deflate,
        server_max_window_bits=st.integers(9, 15),
        client_max_window_bits=st.integers(9, 15),
        server_no_context_takeover=st.booleans(),
        client_no_context_takeover=st.booleans(),
    ),
    st.builds(
        Deflate,
        server_max_window_bits=st.integers(9, 15),
        client_max_window_bits=st.integers(9, 15),
        server_no_context_takeover=st.booleans(),
        client_no_context_takeover=st.booleans(),
    ),
)
def test_two_of_ours_always_agree(ours: Deflate, theirs: Deflate) -> None:
    client, server = PerMessageDeflate(ours), PerMessageDeflate(theirs)
    answer = server.accept(f"{NAME}; {client.offer()}")
    assert answer is not None
    client.finalize(f"{NAME}; {answer}" if answer else NAME)
    assert repr(client) == repr(server)


@given(st.text())
def test_any_offer_is_answered_or_declined(text: str) -> None:
    answer = PerMessageDeflate(Deflate()).accept(f"{NAME};{text}")
    assert answer is None or isinstance(answer, str)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server_max_window_bits", 8),
        ("client_max_window_bits", 16),
        ("level", 10),
        ("mem_level", 0),
        ("threshold", -1),
    ],
)
def test_options_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Deflate(**{field: value})


def test_a_window_of_8_bits_is_never_compressed_with() -> None:
    from asyncwebsockets.codec import PureCodec
    from asyncwebsockets.events import BytesMessage

    extension = PerMessageDeflate(Deflate())
    extension.finalize(f"{NAME}; client_max_window_bits=8")
    data = PureCodec(client=True, extensions=[extension]).encode(BytesMessage(b"x" * 1000))
    assert data[0] == 0x82


def test_wsprotos_extension_is_replaced_by_the_bounded_one() -> None:
    (extension,) = PerMessageDeflate.replacing([WsprotoDeflate(client_max_window_bits=10)])
    assert isinstance(extension, PerMessageDeflate)
    assert extension.options == Deflate(client_max_window_bits=10)
