"""Whatever comes as a handshake, it is taken or refused as the RFCs say, and nothing else happens.

It is the same however the bytes are cut, and whether a request is read without h11 or with it;
what is sent in answer is well formed, and says nothing that was not asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11

from asyncwebsockets import Deflate, InvalidHandshake
from asyncwebsockets._grammar import parse_extension
from asyncwebsockets.codec import make_codec
from asyncwebsockets.deflate import PerMessageDeflate
from asyncwebsockets.events import AcceptConnection, Reject, Request, TextMessage
from asyncwebsockets.handshake import ClientHandshake, ServerHandshake

from ..differential import split
from ..frames import accept_for

if TYPE_CHECKING:
    from collections.abc import Iterable

_KEY = b"MDEyMzQ1Njc4OWFiY2RlZg=="

_MAX_SIZE = 2048
_OPTIONS = [
    Deflate(),
    Deflate(server_max_window_bits=10, client_max_window_bits=11),
    Deflate(server_no_context_takeover=True, client_no_context_takeover=True),
]
_UPGRADE = [("Connection", "upgrade"), ("Upgrade", "websocket")]


def check_request(data: bytes) -> None:
    """Take cuts from the first two bytes; the rest comes to a server."""
    if len(data) < 2:
        return
    first, second, wire = data[0], data[1], data[2:]
    handshake, outcome, taken = _serve([wire])
    for cuts in ([first, first * second], _each_byte(wire)):
        # In pieces, it may be seen to be too long before it is seen to be malformed.
        _, in_pieces, taken_in_pieces = _serve(split(wire, cuts))
        assert in_pieces == outcome or {in_pieces, outcome} == {400, 431}, (in_pieces, outcome)
        assert taken_in_pieces == taken or not isinstance(outcome, Request)
    if outcome is None:
        return
    if isinstance(outcome, int):
        head = handshake.reject(Reject(outcome, body=b"no"))
        end = handshake.reject_body(b"no") + handshake.reject_body(None)
        assert _read_head(head + end)[0] == outcome
        return
    assert taken <= _MAX_SIZE
    assert outcome.target.startswith("/")
    if not handshake.upgrade:
        return
    answer, response, agreed = handshake.accept(
        AcceptConnection(subprotocol=next(iter(outcome.subprotocols), None)),
        [PerMessageDeflate(_OPTIONS[first % len(_OPTIONS)])],
    )
    assert _read_head(answer) == (101, response.headers)
    names = [name.lower() for name, _ in response.headers]
    assert len(set(names)) == len(names)
    assert (b"sec-websocket-extensions" in names) == bool(agreed)


def check_response(data: bytes) -> None:
    """Take cuts from the first two bytes; the rest comes to a client.

    In it, ``{accept}`` stands for the right Sec-WebSocket-Accept.
    """
    if len(data) < 2:
        return
    first, second, wire = data[0], data[1], data[2:]
    whole = _connect(wire, [], first)
    for cuts in ([first, first * second], _each_byte(wire)):
        in_pieces = _connect(wire, cuts, first)
        assert in_pieces == whole, (in_pieces, whole)


def check_offer(data: bytes) -> None:
    """Take a server's options from the first byte; the rest is an offer, or else an answer."""
    if not data:
        return
    options = _OPTIONS[data[0] % len(_OPTIONS)]
    text = data[1:].decode("latin-1")
    server, client = PerMessageDeflate(options), PerMessageDeflate(options)
    answer = server.accept(text)
    if answer is not None:
        _check_answer(text, answer, options)
        client.finalize(f"permessage-deflate; {answer}" if answer else "permessage-deflate")
        _talk(client, server)
    # What this one sends fits any window.
    server = PerMessageDeflate(Deflate(9, server_no_context_takeover=True))
    client = PerMessageDeflate(options)
    try:
        client.finalize(text)
    except ValueError:
        assert not client.enabled()
    else:
        assert server.accept("permessage-deflate; client_max_window_bits") is not None
        _talk(client, server)


def _each_byte(wire: bytes) -> Iterable[int]:
    # h11 looks at all there is each time, so not for long.
    return range(1, min(len(wire), 400))


def _serve(chunks: list[bytes]) -> tuple[ServerHandshake, Request | int | None, int]:
    """Return the request, the status that refuses it, or None, and how many bytes it has."""
    handshake = ServerHandshake(max_size=_MAX_SIZE)
    received = 0
    for chunk in filter(None, chunks):
        received += len(chunk)
        try:
            request = handshake.receive_data(chunk)
        except InvalidHandshake as exc:
            assert exc.status in (400, 405, 426, 431)
            return handshake, exc.status, received
        if request is not None:
            return handshake, request, received - len(handshake.trailing_data)
    return handshake, None, received


def _read_head(data: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Return what another reader makes of the head of a response, and see that all is whole."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "h"), *_UPGRADE]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    event = client.next_event()
    assert isinstance(event, (h11.Response, h11.InformationalResponse))
    return event.status_code, [(bytes(n), bytes(v)) for n, v in event.headers.raw_items()]


def _connect(wire: bytes, cuts: Iterable[int], choice: int) -> object:
    """Return what a client makes of an answer: what was agreed on, a rejection, or its failure."""
    handshake = ClientHandshake(
        host="h",
        target="/",
        subprotocols=["a", "b"],
        extensions=[PerMessageDeflate(_OPTIONS[choice % len(_OPTIONS)])],
        max_size=_MAX_SIZE,
    )
    # The same each time, for a body may have its answer, too.
    handshake._key = _KEY
    wire = wire.replace(b"{accept}", accept_for(_KEY.decode()).encode())
    response = None
    received = 0
    try:
        for chunk in filter(None, split(wire, cuts)):
            received += len(chunk)
            response = handshake.receive_data(chunk)
            if response is not None:
                break
    except InvalidHandshake:
        return "invalid"
    if response is None:
        partial = handshake.partial_response
        return partial and partial.status
    if response.status != 101:
        assert len(handshake.body) <= _MAX_SIZE
        return response.status, handshake.body
    assert handshake.subprotocol in (None, "a", "b")
    end = received - len(handshake.trailing_data)
    assert end <= _MAX_SIZE
    return 101, end, handshake.subprotocol, list(map(repr, handshake.extensions))


def _check_answer(offer: str, answer: str, options: Deflate) -> None:
    """See that an answer stays within the offer and the options (RFC 7692 section 7.1)."""
    offered = dict(parse_extension(offer)[1])
    _, answered = parse_extension(f"x; {answer}" if answer else "x")
    for name, value in answered:
        if value is None:
            assert name in offered or getattr(options, name)
            continue
        assert name in offered or name == "server_max_window_bits"
        limit = offered.get(name)
        assert 8 <= int(value) <= min(getattr(options, name), int(limit) if limit else 15)


def _talk(client: PerMessageDeflate, server: PerMessageDeflate) -> None:
    """Send the same twice each way, which context takeover makes shorter."""
    message = TextMessage("to and fro, and " * 8)
    ends = (make_codec("client", [client], "pure"), make_codec("server", [server], "pure"))
    for sender, receiver in (ends, ends[::-1]):
        for _ in range(2):
            receiver.receive_data(sender.encode(message))
            (event, _), *more = receiver.next_events()[0]
            assert (event, more) == (message, [])
