"""The opening handshake as bytes, without I/O, for both sides (RFC 6455 section 4)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

import h11

from ._grammar import is_token, parse_extension, split_list
from .errors import HandshakeError, InvalidHandshake
from .events import Request, Response

if TYPE_CHECKING:
    from wsproto.extensions import Extension

    from .events import AcceptConnection, Address, RawHeaders, Reject

__all__ = [
    "ClientHandshake",
    "HeadersLike",
    "ServerHandshake",
    "accept_headers",
    "normalize_headers",
]

#: Header fields as a user gives them.
HeadersLike: TypeAlias = (
    Mapping[str, str]
    | Mapping[bytes, bytes]
    | Mapping[str | bytes, str | bytes]
    | Iterable[tuple[str | bytes, str | bytes]]
)

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# The handshake's own fields, which nobody else may set. wsproto's Request names its
# `extra_headers` as those beside them and Host.
_OWN_FIELDS = frozenset(
    (
        b"connection",
        b"upgrade",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
    )
)

# Fields that would put a body where none belongs.
_BODY_FIELDS = frozenset((b"content-length", b"transfer-encoding"))

# What a filter may not set, and what is not among wsproto's `extra_headers`.
_RESERVED = _OWN_FIELDS | _BODY_FIELDS
_NOT_EXTRA = _OWN_FIELDS | {b"host"}

_ABSOLUTE_FORM = re.compile(
    r"(?:http|https|ws|wss)://((?:\[[0-9A-Fa-f:.]+\]|[^\[\]/?#@:]+)(?::\d*)?)(?=[/?]|$)",
    re.IGNORECASE,
)

# A host and a port (RFC 3986 section 3.2), or nothing; each text has one way to match.
_NAME = r"[-A-Za-z0-9._~!$&'()*+,;=]*"
_HOST = re.compile(
    rf"(?:\[([0-9A-Fa-f:.]+)\]|(?!:){_NAME}(?:%[0-9A-Fa-f]{{2}}{_NAME})*)(?::[0-9]*)?"
)

# How h11 quotes what came.
_QUOTED = re.compile(r":? (?:bytearray\()?b['\"]")

# 16 bytes in base64.
_NONCE = re.compile(rb"[A-Za-z0-9+/]{22}==")

# A request as clients write it, in one piece. It is strict, so that h11, which is asked about
# anything else, would read the same from it; each character has one way to match.
_PLAIN_REQUEST = re.compile(
    rb"GET ([!-~]+) HTTP/1\.1\r\n((?:[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)*)\r\n"
)

# Header fields, and items of a list in them. Each is kept, as an object of many times its bytes.
_MAX_ITEMS = 256

# What every client sends need not be kept for each.
_COMMON = {
    field: field
    for field in (
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Upgrade", b"websocket"),
    )
}

# What every 101 begins with.
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n"
_SWITCHED = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))

# The values of header fields by their names in lower case.
_Fields: TypeAlias = dict[bytes, list[bytes]]


def normalize_headers(headers: HeadersLike | None) -> RawHeaders:
    """Return header fields as pairs of bytes.

    Raises:
        TypeError: a name or value is neither ``str`` nor ``bytes``.
        ValueError: a name is not a token, or a value has control characters (RFC 9110
            section 5.5) or characters beyond Latin-1.
    """
    if headers is None:
        return []
    # Type checkers do not see that what is no mapping is an iterable of pairs.
    pairs: Iterable[tuple[str | bytes, str | bytes]] = (
        headers.items() if isinstance(headers, Mapping) else headers
    )
    return [(_field_name(name), _field_value(name, value)) for name, value in pairs]


def accept_headers(event: AcceptConnection) -> RawHeaders:
    """Return the header fields that a filter adds to the 101, as pairs of bytes.

    Raises:
        TypeError, ValueError: as :func:`normalize_headers`, or a field belongs to the handshake.
    """
    headers = normalize_headers(event.extra_headers)
    _check_free(headers, _RESERVED)
    return headers


def _as_bytes(value: str | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, bytes):
        return value
    raise TypeError(f"expected a header field of str or bytes, got {type(value).__name__}")


def _field_name(name: str | bytes) -> bytes:
    raw = _as_bytes(name)
    if not is_token(raw.decode("latin-1")):
        raise ValueError(f"expected a header field name, got {name!r}")
    return raw


def _field_value(name: str | bytes, value: str | bytes) -> bytes:
    raw = _as_bytes(value)
    if any(byte < 0x20 and byte != 0x09 or byte == 0x7F for byte in raw):
        # The value is left out: it may be a secret.
        raise ValueError(f"the value of header field {name!r} has control characters")
    return raw.strip(b" \t")


def _check_free(headers: RawHeaders, taken: frozenset[bytes]) -> None:
    for name, _ in headers:
        if name.lower() in taken:
            raise ValueError(f"the header field {name.decode()} belongs to the handshake")


def _accept_token(key: bytes) -> bytes:
    # SHA-1 is the protocol's, not for security (RFC 6455 section 10.8).
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False)


def _by_name(headers: RawHeaders) -> _Fields:
    fields: _Fields = {}
    for name, value in headers:
        lower = name.lower()
        if lower in fields:
            fields[lower].append(value)
        else:
            fields[lower] = [value]
    return fields


def _items(fields: _Fields, name: bytes) -> list[str]:
    """Return the items of a list field over all its lines."""
    if name not in fields:
        return []
    return [item for value in fields[name] for item in split_list(value.decode("latin-1"))]


def _has_token(fields: _Fields, name: bytes, token: bytes) -> bool:
    values = fields.get(name, ())
    # Mostly it is all there is.
    if len(values) == 1 and values[0].lower() == token:
        return True
    return any(item.lower() == token.decode() for item in _items(fields, name))


def _check_host(authority: str) -> None:
    """Check what Host says (RFC 9110 section 7.2), which is nothing where there is no host.

    Raises:
        InvalidHandshake: it is not a host with or without a port.
    """
    match = _HOST.fullmatch(authority)
    fits = match is not None
    if match is not None and match[1] is not None:
        try:
            ipaddress.IPv6Address(match[1])
        except ValueError:
            fits = False
    if not fits:
        raise InvalidHandshake(f"expected a host as the Host header field, got {authority!r}")


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


class ServerHandshake:
    """The server's side of one handshake.

    Feed it with :meth:`receive_data` until that returns the request, then write what
    :meth:`accept` or :meth:`reject` and :meth:`reject_body` return. :attr:`trailing_data` then
    has the bytes that came after the request.

    Args:
        max_size: bytes the request may have, None for no limit.
        local_address, remote_address, secure: what the request is to say of its connection.
    """

    def __init__(
        self,
        *,
        max_size: int | None,
        local_address: Address = None,
        remote_address: Address = None,
        secure: bool = False,
    ) -> None:
        # Only made for a request that is not plain, and for an answer other than 101.
        self._connection: h11.Connection | None = None
        # The plain request, and what came behind it.
        self._plain = b""
        self._behind = b""
        self._max_size = max_size
        self._local_address = local_address
        self._remote_address = remote_address
        self._secure = secure
        self._received = 0
        self._key = b""
        self._request: Request | None = None
        self._bodyless = False
        #: Whether the request asks for a WebSocket; if not, it is plain HTTP.
        self.upgrade: bool = False

    def receive_data(self, data: bytes) -> Request | None:
        """Take bytes from the client, b"" for the end of its side.

        Returns:
            The request once it is complete, None before.

        Raises:
            InvalidHandshake: the request cannot be accepted; its status and headers answer it.
            HandshakeError: the client left without a request; there is nothing to answer.
        """
        if not self._received:
            self._received = len(data)
            request = self._read_plain(data)
            if request is not None:
                return request
        else:
            self._received += len(data)
        connection = self._http()
        try:
            connection.receive_data(data)
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            # h11 also knows 501 for transfer codings; a handshake has no body to code.
            status = 431 if exc.error_status_hint == 431 else 400
            # What it quotes is left out: it may have a secret.
            what = _QUOTED.split(str(exc))[0]
            raise InvalidHandshake(f"malformed HTTP request: {what}", status) from None
        if event is h11.NEED_DATA:
            return None
        if not isinstance(event, h11.Request):
            raise HandshakeError("the client left without a request")
        if (
            self._max_size is not None
            and self._received - len(connection.trailing_data[0]) > self._max_size
        ):
            raise InvalidHandshake(f"a request of more than {self._max_size} bytes", 431)
        headers = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
        return self._read(
            event.method, event.target, event.http_version, headers, _by_name(headers)
        )

    def _http(self) -> h11.Connection:
        """Return h11's side of it, which knows of the request."""
        if self._connection is None:
            self._connection = h11.Connection(
                h11.SERVER,
                max_incomplete_event_size=self._max_size if self._max_size is not None else 2**62,
            )
            if self._plain:
                self._connection.receive_data(self._plain)
                self._connection.next_event()
        return self._connection

    def _read_plain(self, data: bytes) -> Request | None:
        """Return the request that the first bytes from the client are, None to ask h11."""
        match = _PLAIN_REQUEST.match(data)
        if match is None or (self._max_size is not None and match.end() > self._max_size):
            return None
        headers = []
        for line in match[2].split(b"\r\n", _MAX_ITEMS + 1)[:-1]:
            name, _, value = line.partition(b":")
            field = (name, value.strip(b" \t"))
            headers.append(_COMMON.get(field, field))
        fields = _by_name(headers)
        if len(fields.get(b"host", ())) != 1 or not fields.keys().isdisjoint(_BODY_FIELDS):
            return None
        self._plain, self._behind = match[0], data[match.end() :]
        return self._read(b"GET", match[1], b"1.1", headers, fields)

    def _read(
        self,
        raw_method: bytes,
        raw_target: bytes,
        http_version: bytes,
        headers: RawHeaders,
        fields: _Fields,
    ) -> Request:
        method = raw_method.decode("ascii")
        # Known before anything is refused, for the answer depends on it.
        self._bodyless = method == "HEAD"
        subprotocols = _items(fields, b"sec-websocket-protocol")
        extensions = _items(fields, b"sec-websocket-extensions")
        if max(len(headers), len(subprotocols), len(extensions)) > _MAX_ITEMS:
            raise InvalidHandshake(
                f"more than {_MAX_ITEMS} header fields, subprotocols or extensions", 431
            )
        self.upgrade = _has_token(fields, b"upgrade", b"websocket")
        if self.upgrade:
            if method != "GET":
                raise InvalidHandshake(
                    f"expected the method GET, got {method}", 405, [(b"Allow", b"GET")]
                )
            self._check_upgrade(http_version, fields, subprotocols, extensions)
        elif method not in ("GET", "HEAD"):
            raise InvalidHandshake(
                f"expected the method GET, got {method}", 405, [(b"Allow", b"GET")]
            )
        if b"transfer-encoding" in fields or (
            b"content-length" in fields
            and any(value.strip() != b"0" for value in fields[b"content-length"])
        ):
            raise InvalidHandshake("expected a request without a body")

        target = raw_target.decode("ascii")
        authority = fields[b"host"][0].decode("latin-1") if b"host" in fields else ""
        _check_host(authority)
        if not target.startswith("/"):
            absolute = _ABSOLUTE_FORM.match(target)
            if absolute is not None:
                # Its authority overrides Host (RFC 9112 section 3.2.2).
                authority = absolute[1]
                _check_host(authority)
                target = target[absolute.end() :]
                target = target if target.startswith("/") else f"/{target}"
        if not target.startswith("/") or "#" in target:
            # The query is left out: it may have a secret.
            path = target.partition("?")[0]
            raise InvalidHandshake(f"expected a path as the request target, got {path!r}")
        self._request = Request(
            host=authority,
            target=target,
            extensions=extensions,
            extra_headers=[
                (lower, value)
                for name, value in headers
                if (lower := name.lower()) not in _NOT_EXTRA
            ],
            subprotocols=subprotocols,
            method=method,
            headers=headers,
            local_address=self._local_address,
            remote_address=self._remote_address,
            secure=self._secure,
            http_version=http_version.decode("ascii"),
        )
        return self._request

    def _check_upgrade(
        self,
        http_version: bytes,
        fields: _Fields,
        subprotocols: Sequence[str],
        extensions: Sequence[str],
    ) -> None:
        """Check what RFC 6455 section 4.2.1 asks of the client."""
        if http_version < b"1.1":
            raise InvalidHandshake("expected HTTP/1.1, got HTTP/1.0")
        if not _has_token(fields, b"connection", b"upgrade"):
            raise InvalidHandshake('expected the token "Upgrade" in the Connection header field')
        versions = fields.get(b"sec-websocket-version", [])
        if len(versions) != 1:
            raise InvalidHandshake(
                f"expected one Sec-WebSocket-Version header field, got {len(versions)}"
            )
        if versions[0] != b"13":
            raise InvalidHandshake(
                f"expected Sec-WebSocket-Version 13, got {versions[0].decode('latin-1')!r}",
                426,
                [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")],
            )
        keys = fields.get(b"sec-websocket-key", [])
        if len(keys) != 1:
            raise InvalidHandshake(f"expected one Sec-WebSocket-Key header field, got {len(keys)}")
        self._key = keys[0]
        if _NONCE.fullmatch(self._key) is None:
            raise InvalidHandshake("expected 16 bytes in base64 as Sec-WebSocket-Key")
        if subprotocols and len(set(subprotocols)) != len(subprotocols):
            raise InvalidHandshake(f"expected each subprotocol once, got {subprotocols}")
        for subprotocol in subprotocols:
            if not is_token(subprotocol):
                raise InvalidHandshake(f"expected a token as a subprotocol, got {subprotocol!r}")
        for extension in extensions:
            try:
                parse_extension(extension)
            except ValueError as exc:
                raise InvalidHandshake(f"malformed Sec-WebSocket-Extensions: {exc}") from None

    @property
    def trailing_data(self) -> bytes:
        """The bytes that came after the request."""
        if self._plain:
            return self._behind
        return bytes(self._http().trailing_data[0])

    def accept(
        self, event: AcceptConnection, extensions: Sequence[Extension]
    ) -> tuple[bytes, Response, list[Extension]]:
        """Accept the connection (RFC 6455 section 4.2.2).

        Args:
            event: the subprotocol and the additional header fields.
            extensions: what this side can do, each tried on the client's offers.

        Returns:
            The bytes to send, the response as an object, and the extensions agreed on.

        Raises:
            ValueError: the subprotocol was not offered, or a header field is not allowed.
        """
        request = self._request
        assert request is not None
        assert self.upgrade
        headers = accept_headers(event) if event.extra_headers else []
        subprotocol = event.subprotocol
        if subprotocol is not None and subprotocol not in request.subprotocols:
            raise ValueError(
                f"expected one of the offered subprotocols {request.subprotocols}, "
                f"got {subprotocol!r}"
            )
        agreed, answers = _negotiate(request, extensions) if extensions else ([], [])
        fields = [*_SWITCHED, (b"Sec-WebSocket-Accept", _accept_token(self._key))]
        if subprotocol is not None:
            fields.append((b"Sec-WebSocket-Protocol", subprotocol.encode("ascii")))
        if answers:
            fields.append((b"Sec-WebSocket-Extensions", ", ".join(answers).encode("ascii")))
        fields += headers
        lines = [b"%s: %s\r\n" % field for field in fields]
        data = b"".join([_SWITCH, *lines, b"\r\n"])
        return data, Response(101, fields), agreed

    def reject(self, response: Reject) -> bytes:
        """Return the status line and header fields of a response in place of a connection.

        Raises:
            ValueError: a header field is not allowed.
        """
        headers = normalize_headers(response.headers)
        names = {name.lower() for name, _ in headers}
        if isinstance(response.body, bytes) and names & _BODY_FIELDS:
            size = str(len(response.body)).encode("ascii")
            if _by_name(headers).get(b"content-length") != [size] or b"transfer-encoding" in names:
                raise ValueError(
                    f"expected no Transfer-Encoding and a Content-Length of {len(response.body)} "
                    "with a body of that many bytes"
                )
        if isinstance(response.body, bytes) and not names & _BODY_FIELDS:
            # A response without a body by its status has no length either.
            if response.status not in (204, 304):
                headers.append((b"Content-Length", str(len(response.body)).encode("ascii")))
        if b"date" not in names:
            headers.append((b"Date", formatdate(usegmt=True).encode("ascii")))
        if b"connection" not in names:
            headers.append((b"Connection", b"close"))
        try:
            data = self._http().send(
                h11.Response(
                    status_code=response.status, headers=headers, reason=_phrase(response.status)
                )
            )
        except h11.LocalProtocolError as exc:
            raise ValueError(f"the response cannot be sent: {exc}") from None
        assert data is not None
        return data

    def reject_body(self, data: bytes | None) -> bytes:
        """Return the bytes of a piece of the response's body, None for its end.

        Raises:
            ValueError: the body is not as long as its Content-Length says.
        """
        connection = self._http()
        if connection.our_state is not h11.SEND_BODY:
            return b""
        try:
            if data is None:
                return connection.send(h11.EndOfMessage()) or b""
            return b"" if self._bodyless else connection.send(h11.Data(data=data)) or b""
        except h11.LocalProtocolError as exc:
            raise ValueError(f"the response's body cannot be sent: {exc}") from None


def _negotiate(
    request: Request, extensions: Sequence[Extension]
) -> tuple[list[Extension], list[str]]:
    """Try each extension on the client's offers, in the client's order (RFC 6455 section 9.1)."""
    agreed: list[Extension] = []
    answers: list[str] = []
    for offer in request.extensions:
        assert isinstance(offer, str)
        name, _ = parse_extension(offer)
        for extension in extensions:
            if extension.name.lower() != name.lower() or extension in agreed:
                continue
            answer = extension.accept(offer)
            if answer is None or answer is False:
                continue
            agreed.append(extension)
            answers.append(
                f"{extension.name}; {answer}" if isinstance(answer, str) and answer else name
            )
            break
    return agreed, answers


class ClientHandshake:
    """The client's side of one handshake.

    Send :attr:`request_data`, then feed :meth:`receive_data` until it returns the response.

    Args:
        host: what the Host header field says, unless `headers` say otherwise.
        target: the path with its query.
        headers: additional header fields.
        subprotocols: what to offer, in order of preference.
        extensions: what to offer.
        max_size: bytes the response may have, and bytes kept of the body of one that is not 101.

    Raises:
        TypeError: a header field is neither ``str`` nor ``bytes``.
        ValueError: a header field or a subprotocol is not allowed, or the target is no path.
    """

    def __init__(
        self,
        *,
        host: str,
        target: str,
        headers: HeadersLike | None = None,
        subprotocols: Sequence[str] | None = None,
        extensions: Sequence[Extension] = (),
        max_size: int | None = None,
    ) -> None:
        extra = normalize_headers(headers)
        _check_free(extra, _RESERVED)
        if isinstance(subprotocols, str):
            raise TypeError("expected a sequence of subprotocols, got a str")
        offered = list(subprotocols or ())
        for subprotocol in offered:
            if not is_token(subprotocol):
                raise ValueError(f"expected a token as a subprotocol, got {subprotocol!r}")
        if len(set(offered)) != len(offered):
            raise ValueError(f"expected each subprotocol once, got {offered}")
        if not target.startswith("/") or not target.isascii() or not target.isprintable():
            raise ValueError(f"expected an absolute path in ASCII as the target, got {target!r}")
        if " " in target or "#" in target:
            raise ValueError(f"expected a target without space and fragment, got {target!r}")

        if not host.isascii() or not host.isprintable():
            raise ValueError(f"expected a Host header field in ASCII, got {host!r}")
        own_host = [value for name, value in extra if name.lower() == b"host"]
        if len(own_host) > 1:
            raise ValueError("expected one Host header field at most")
        extra = [(name, value) for name, value in extra if name.lower() != b"host"]
        self._extensions = list(extensions)
        self._key = base64.b64encode(secrets.token_bytes(16))
        fields: RawHeaders = [
            (b"Host", own_host[0] if own_host else _as_bytes(host)),
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Key", self._key),
            (b"Sec-WebSocket-Version", b"13"),
        ]
        if offered:
            fields.append((b"Sec-WebSocket-Protocol", ", ".join(offered).encode("ascii")))
        offers = []
        for extension in self._extensions:
            offer = extension.offer()
            if offer is not False:
                offers.append(
                    f"{extension.name}; {offer}"
                    if isinstance(offer, str) and offer
                    else extension.name
                )
        if offers:
            fields.append((b"Sec-WebSocket-Extensions", ", ".join(offers).encode("ascii")))
        fields += extra
        self._max_size = max_size
        self._connection = h11.Connection(
            h11.CLIENT, max_incomplete_event_size=max_size if max_size is not None else 2**62
        )
        try:
            data = self._connection.send(
                h11.Request(method="GET", target=target.encode("ascii"), headers=fields)
            )
            assert data is not None
            self._connection.send(h11.EndOfMessage())
        except h11.LocalProtocolError as exc:
            raise ValueError(f"the request cannot be sent: {exc}") from None
        #: The bytes to send.
        self.request_data: bytes = data
        #: The request as an object.
        self.request: Request = Request(
            host=fields[0][1].decode("latin-1"),
            target=target,
            extensions=offers,
            extra_headers=[(name.lower(), value) for name, value in extra],
            subprotocols=offered,
            headers=fields,
        )
        self._received = 0
        self._response: Response | None = None
        #: What the server chose.
        self.subprotocol: str | None = None
        #: What both sides have agreed on.
        self.extensions: list[Extension] = []
        #: The body of a response that is not 101, as far as it came and was kept.
        self.body: bytes = b""

    def receive_data(self, data: bytes) -> Response | None:
        """Take bytes from the server, b"" for the end of its side.

        Returns:
            The response once it is complete, its body included if it is not 101.

        Raises:
            InvalidHandshake: the response is malformed, or a 101 that does not fit the request.
            HandshakeError: the server left without a response.
        """
        self._received += len(data)
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                    self._check_size()
                    continue
                if isinstance(event, (h11.InformationalResponse, h11.Response)):
                    self._check_size()
                    headers = [(bytes(n), bytes(v)) for n, v in event.headers.raw_items()]
                    if len(headers) > _MAX_ITEMS:
                        raise InvalidHandshake(f"more than {_MAX_ITEMS} header fields")
                    self._response = Response(event.status_code, headers)
                    if event.status_code == 101:
                        if event.http_version < b"1.1":
                            raise InvalidHandshake("expected a 101 of HTTP/1.1, got HTTP/1.0")
                        self._check_switch(headers)
                        return self._response
                elif isinstance(event, h11.Data):
                    self.body += bytes(event.data)
                    if self._max_size is not None and len(self.body) >= self._max_size:
                        self.body = self.body[: self._max_size]
                        return self._response
                elif isinstance(event, h11.EndOfMessage):
                    return self._response
                else:
                    raise HandshakeError("the server closed the connection without a response")
        except h11.RemoteProtocolError as exc:
            if self._response is not None:
                # The status is known; a body that broke off takes nothing from that.
                return self._response
            if not data:
                raise HandshakeError(
                    "the server closed the connection without a response"
                ) from None
            raise InvalidHandshake(f"malformed HTTP response: {exc}") from None

    @property
    def partial_response(self) -> Response | None:
        """The response whose body is not complete, None before its header fields are."""
        return self._response

    def _check_size(self) -> None:
        size = self._received - len(self._connection.trailing_data[0])
        if self._max_size is not None and size > self._max_size:
            raise InvalidHandshake(f"a response of more than {self._max_size} bytes")

    def _check_switch(self, headers: RawHeaders) -> None:
        """Check what RFC 6455 section 4.1 asks of the server."""
        fields = _by_name(headers)
        if not _has_token(fields, b"upgrade", b"websocket"):
            raise InvalidHandshake('expected "websocket" in the Upgrade header field of the 101')
        if not _has_token(fields, b"connection", b"upgrade"):
            raise InvalidHandshake('expected "Upgrade" in the Connection header field of the 101')
        if fields.get(b"sec-websocket-accept") != [_accept_token(self._key)]:
            raise InvalidHandshake("Sec-WebSocket-Accept does not match the request's key")
        chosen = fields.get(b"sec-websocket-protocol")
        if chosen:
            subprotocol = chosen[0].decode("latin-1")
            if len(chosen) > 1 or subprotocol not in self.request.subprotocols:
                raise InvalidHandshake(
                    f"expected one of the offered subprotocols {self.request.subprotocols}, "
                    f"got {', '.join(value.decode('latin-1') for value in chosen)!r}"
                )
            self.subprotocol = subprotocol
        for answer in _items(fields, b"sec-websocket-extensions"):
            try:
                name, _ = parse_extension(answer)
                extension = next(
                    e
                    for e in self._extensions
                    if e.name.lower() == name.lower() and e not in self.extensions
                )
                extension.finalize(answer)
            except StopIteration:
                raise InvalidHandshake(
                    f"the server chose an extension not offered: {answer!r}"
                ) from None
            except ValueError as exc:
                raise InvalidHandshake(f"the server's extension does not fit: {exc}") from None
            self.extensions.append(extension)

    @property
    def trailing_data(self) -> bytes:
        """The bytes that came after the 101."""
        return bytes(self._connection.trailing_data[0])
