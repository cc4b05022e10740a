"""The load: plain sockets, one thread, frames made beforehand.

It stands at the other end of whatever is measured, as the clients of a server or as the server of
clients, and knows no more of the protocol than how long a message is. What it costs is mostly the
kernel's part, and is measured with everything else.
"""

from __future__ import annotations

import gc
import select
import socket
import struct
import time
import zlib
from base64 import b64encode
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha1
from itertools import chain, cycle, repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence

#: The seconds of silence after which the other end is taken for dead.
PATIENCE = 30

_MASK = b"\x5a\xc3\x17\x8e"
_KEY = b64encode(bytes(range(16)))
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE = 1, 2, 8

_buffer = memoryview(bytearray(1 << 18))


class LoadError(Exception):
    """The other end does not do what it should."""


def frame(
    payload: bytes, *, opcode: int = _BINARY, masked: bool, compressed: bool = False
) -> bytes:
    """Return one whole message (RFC 6455 section 5.2)."""
    size, mask = len(payload), 0x80 if masked else 0
    first = 0x80 | opcode | (0x40 if compressed else 0)
    if size < 126:
        head = struct.pack("!BB", first, mask | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, mask | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask | 127, size)
    if not masked:
        return head + payload
    key = (_MASK * (size // 4 + 1))[:size]
    xored = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return head + _MASK + xored.to_bytes(size, "little")


@dataclass(frozen=True)
class Traffic:
    """What goes to and fro on each connection.

    Attributes:
        payload: the first message.
        outgoing: what is sent at a time, again and again; the last ones are repeated.
        repeated: how many are repeated.
        incoming: the bytes of the answer to each, None if it is to be read frame by frame.
        count: the messages in each.
        offer: the extensions a client asks for.
    """

    payload: bytes
    outgoing: Sequence[bytes]
    repeated: int
    incoming: int | None
    count: int
    offer: bytes = b""

    def endless(self) -> Iterator[bytes]:
        """Return what to send."""
        if len(self.outgoing) == 1:
            return repeat(self.outgoing[0])
        first = len(self.outgoing) - self.repeated
        return chain(self.outgoing[:first], cycle(self.outgoing[first:]))


def plain(size: int, count: int = 1, *, server: bool = False) -> Traffic:
    """Messages of so many bytes, each answered by one as long."""
    payload = bytes(i * 7 % 251 for i in range(size))
    out, back = (frame(payload, masked=masked) for masked in (not server, server))
    return Traffic(payload, [out * count], 1, len(back) * count, count)


def compressed(texts: Sequence[bytes], *, takeover: bool) -> Traffic:
    """Texts one after the other, compressed as a client would that limits itself to 12 bits.

    Every server takes these, whatever window it would grant. With context takeover the texts are
    gone through twice: the second time what they refer to is there, and so it is ever after.
    """
    outgoing = []
    deflate = zlib.compressobj(wbits=-12)
    for text in (*texts, *texts) if takeover else texts:
        if not takeover:
            deflate = zlib.compressobj(wbits=-12)
        data = deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)
        outgoing.append(
            frame(data.removesuffix(b"\0\0\xff\xff"), opcode=_TEXT, masked=True, compressed=True)
        )
    offer = b"permessage-deflate; client_max_window_bits"
    if not takeover:
        offer += b"; client_no_context_takeover; server_no_context_takeover"
    return Traffic(texts[0], outgoing, len(texts), None, 1, offer)


class Link:
    """One end of a connection that is open, blocking."""

    def __init__(self, sock: socket.socket, traffic: Traffic) -> None:
        self._sock = sock
        self._sendall = sock.sendall
        self._recv_into = sock.recv_into
        self._outgoing = traffic.endless()
        self._due = traffic.incoming or 0
        self._come = 0

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Cut the connection; the reset leaves no port behind in TIME_WAIT."""
        with self._sock:
            linger = struct.pack("ii", 1, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def send(self) -> None:
        """Send what is next."""
        self._sendall(next(self._outgoing))

    def receive(self) -> bool:
        """Read, and return whether the answer is there as a whole."""
        size = self._recv_into(_buffer)
        if not size:
            raise LoadError("the other end has closed the connection")
        self._come += size
        if self._come < self._due:
            return False
        self._come -= self._due
        return True

    def check(self, traffic: Traffic, *, deflated: bool) -> None:
        """Send once, and see that it comes back; the first thing to be done with a link."""
        self.send()
        data = b""
        for _ in range(traffic.count):
            while not (whole := _parse(data)):
                data += _read(self._sock)
            first, answer, data = data[0], data[whole[0] : whole[1]], data[whole[1] :]
            if deflated != bool(first & 0x40):
                raise LoadError(f"expected compression to be {deflated}, got {first:#x}")
            if deflated:
                answer = zlib.decompressobj(wbits=-15).decompress(answer + b"\0\0\xff\xff")
            if not first & 0x80 or answer != traffic.payload:
                raise LoadError(f"expected {traffic.payload[:20]!r}..., got {answer[:20]!r}...")
        if data:
            raise LoadError(f"expected nothing more, got {data[:20]!r}...")


class FrameLink(Link):
    """A link whose answers are of no known length."""

    _rest = b""

    def receive(self) -> bool:
        """Read, and return whether the answer is there as a whole."""
        data = self._rest + _read(self._sock)
        whole = _parse(data)
        self._rest = data[whole[1] :] if whole else data
        return whole is not None


def _parse(data: bytes) -> tuple[int, int] | None:
    """Return where the payload of the first frame begins and ends, None if it is not all there."""
    if len(data) < 2:
        return None
    size, head = data[1], 2
    if size == 126:
        size, head = int.from_bytes(data[2:4], "big"), 4
    elif size == 127:
        size, head = int.from_bytes(data[2:10], "big"), 10
    return (head, head + size) if len(data) >= head + size else None


def _read(sock: socket.socket) -> bytes:
    data = sock.recv(1 << 16)
    if not data:
        raise LoadError("the other end has closed the connection")
    return data


def _prepare(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A time-out of Python's would cost a poll() a call.
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", PATIENCE, 0))


def _read_head(sock: socket.socket) -> bytes:
    """Read the HTTP of a handshake, behind which nothing may come."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += _read(sock)
    return data


def _request(offer: bytes = b"") -> bytes:
    fields = [
        b"GET / HTTP/1.1",
        b"Host: 127.0.0.1",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + _KEY,
    ]
    if offer:
        fields.append(b"Sec-WebSocket-Extensions: " + offer)
    return b"\r\n".join(fields) + b"\r\n\r\n"


def connect(port: int, traffic: Traffic, tls: ssl.SSLContext | None = None) -> Link:
    """Open a connection as a client."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        _prepare(sock)
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock))
        sock.sendall(_request(traffic.offer))
        head = _read_head(sock)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise LoadError(f"expected status 101, got {head!r}")
        granted = head.lower()
        for name in traffic.offer.replace(b" ", b"").split(b";"):
            # What concerns the client's own frames a server may leave out.
            if name not in granted and not name.startswith(b"client_"):
                raise LoadError(f"expected {name.decode()} to be granted, got {head!r}")
        stack.pop_all()
        return (Link if traffic.incoming else FrameLink)(sock, traffic)


def accept(listener: socket.socket, traffic: Traffic) -> Link:
    """Take a connection as a server."""
    name = b"\r\nsec-websocket-key:"
    with ExitStack() as stack:
        sock = stack.enter_context(listener.accept()[0])
        _prepare(sock)
        head = _read_head(sock)
        at = head.lower().index(name) + len(name)
        key = head[at:].partition(b"\r\n")[0].strip()
        fields = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + b64encode(sha1(key + _GUID).digest()),
        ]
        sock.sendall(b"\r\n".join(fields) + b"\r\n\r\n")
        stack.pop_all()
        return Link(sock, traffic)


@dataclass(frozen=True)
class Run:
    """What was done and how long each answer took, in seconds."""

    messages: int
    seconds: float
    latencies: Sequence[float]


@contextmanager
def _polling(links: Sequence[Link]) -> Iterator[select.epoll]:
    with select.epoll() as poll:
        for link in links:
            poll.register(link, select.EPOLLIN)
        gc.collect()
        gc.disable()
        try:
            yield poll
        finally:
            gc.enable()


def _ready(poll: select.epoll) -> list[tuple[int, int]]:
    if events := poll.poll(PATIENCE):
        return events
    raise LoadError(f"the other end was silent for {PATIENCE} s")


def exchange(links: Sequence[Link], count: int, seconds: float, *, begin: bool = True) -> Run:
    """Send on each link whenever its answer has come, for so long, and at least once.

    Args:
        links: open connections.
        count: the messages in what is sent at a time.
        seconds: nothing is sent later.
        begin: send first. If not, the other end begins, and the last answers are owed to it.
    """
    with _polling(links) as poll:
        clock = time.perf_counter
        receive = {link.fileno(): link.receive for link in links}
        send = {link.fileno(): link.send for link in links}
        latencies = []
        start = clock()
        end = start + seconds
        sent = dict.fromkeys(send, start)
        if begin:
            for fd in send:
                sent[fd] = clock()
                send[fd]()
        active = len(links)
        while active:
            for fd, _ in _ready(poll):
                if receive[fd]():
                    now = clock()
                    latencies.append(now - sent[fd])
                    if now < end:
                        sent[fd] = now
                        send[fd]()
                    else:
                        active -= 1
        return Run(len(latencies) * count, clock() - start, latencies)


def publish(links: Sequence[Link], seconds: float) -> Run:
    """Send on the first link whenever the message has come on all, for so long."""
    with _polling(links) as poll:
        clock = time.perf_counter
        receive = {link.fileno(): link.receive for link in links}
        latencies: list[float] = []
        now = start = clock()
        while not latencies or now < start + seconds:
            begun = now
            links[0].send()
            missing = len(links)
            while missing:
                for fd, _ in _ready(poll):
                    missing -= receive[fd]()
            now = clock()
            latencies.append(now - begun)
        return Run(len(latencies) * len(links), now - start, latencies)


def shake_hands(port: int, concurrency: int, seconds: float) -> Run:
    """Open and close connections, so many at a time, for so long; the latency is to the 101."""
    request = _request()
    farewell = frame((1000).to_bytes(2, "big"), opcode=_CLOSE, masked=True)
    clock = time.perf_counter
    latencies: list[float] = []
    opening: dict[int, tuple[socket.socket, float]] = {}
    closing: dict[int, socket.socket] = {}
    with _polling([]) as poll:

        def open_one() -> None:
            now = clock()
            sock = socket.create_connection(("127.0.0.1", port))
            _prepare(sock)
            sock.sendall(request)
            opening[sock.fileno()] = (sock, now)
            poll.register(sock, select.EPOLLIN)

        start = clock()
        for _ in range(concurrency):
            open_one()
        while opening or closing:
            for fd, _ in _ready(poll):
                if fd in opening:
                    sock, begun = opening.pop(fd)
                    head = _read_head(sock)
                    if not head.startswith(b"HTTP/1.1 101 "):
                        raise LoadError(f"expected status 101, got {head!r}")
                    latencies.append(clock() - begun)
                    sock.sendall(farewell)
                    closing[fd] = sock
                elif not closing[fd].recv(1 << 16):
                    # The server is the first to close TCP (RFC 6455 section 7.1.1).
                    closing.pop(fd).close()
                    if clock() - start < seconds:
                        open_one()
        return Run(len(latencies), clock() - start, latencies)
