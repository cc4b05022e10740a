"""TLS on any byte pipe."""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

import anyio
from anyio.streams.tls import TLSAttribute

from .errors import HandshakeError
from .transport import PushTransport, Sink, Transport, TransportLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import Address
    from .pace import Pace

__all__ = ["default_context", "on_tls", "open_tls", "start_tls"]

# The most one record holds (RFC 8446 section 5.1), and so what one call decrypts.
_RECORD = 16 * 1024


async def start_tls(
    pipe: Transport,
    context: ssl.SSLContext,
    *,
    server_side: bool = False,
    hostname: str | None = None,
) -> Transport:
    """Shake hands (RFC 8446 section 4) and return the pipe that encrypts.

    Args:
        pipe: it is owned by the result, or by the caller if this raises.
        context: the certificates and what is asked of the peer's.
        server_side: whether this side is the server.
        hostname: whom the certificate of the server is to name.

    Raises:
        ssl.SSLError: the two cannot agree, or a certificate is no good.
        TransportLost: the connection ended or broke.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=hostname)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            if outgoing.pending:
                await pipe.send(outgoing.read())
            data = await pipe.receive()
            if not data:
                raise TransportLost("the connection ended in the TLS handshake") from None
            incoming.write(data)
        except ssl.SSLError:
            # The alert tells the peer why.
            with contextlib.suppress(TransportLost):
                await pipe.send(outgoing.read())
            raise
        else:
            break
    if outgoing.pending:
        await pipe.send(outgoing.read())
    return on_tls(pipe, tls, incoming, outgoing)


@cache
def default_context() -> ssl.SSLContext:
    """Return the client's context that verifies certificates and host names."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def open_tls(
    pipe: Transport, context: ssl.SSLContext, hostname: str, whom: str = "the server"
) -> Transport:
    """Shake hands as a client, with a pipe that is closed if that fails.

    Raises:
        ssl.SSLError: as :func:`start_tls`.
        HandshakeError: the connection ended or broke.
    """
    try:
        return await start_tls(pipe, context, hostname=hostname)
    except TransportLost as exc:
        await pipe.abort()
        raise HandshakeError(f"the TLS handshake with {whom} failed: {exc}") from exc
    except BaseException:
        await pipe.abort()
        raise


def on_tls(
    pipe: Transport, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> Transport:
    """Return the pipe that encrypts, after the handshake."""
    if isinstance(pipe, PushTransport):
        return _PushTls(pipe, tls, incoming, outgoing)
    return _Tls(pipe, tls, incoming, outgoing)


class _Tls(Transport):
    """The pipe on an encrypted one.

    Args:
        pipe: carries the records; it is owned from here on.
        tls: has shaken hands.
        incoming, outgoing: where it reads and writes records.
    """

    def __init__(
        self,
        pipe: Transport,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self._pipe = pipe
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._eof = False
        self._failure: str | None = None
        # What waits for a renegotiation (TLS 1.2) to be over.
        self._waiting: deque[bytes] = deque()
        self._resumed: anyio.Event | None = None

    @property
    def pace(self) -> Pace:
        """That of the pipe."""
        return self._pipe.pace

    # Receiving

    async def receive(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        while True:
            data = self._decrypt()
            if data:
                return data
            if self._failure is not None:
                raise TransportLost(self._failure)
            if self._eof:
                return b""
            self._feed(await self._pipe.receive())

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypt(self) -> bytes:
        """Return what can be decrypted; b"" if more is needed, or at the end, or on failure."""
        pieces = []
        read = self._tls.read
        try:
            while piece := read(_RECORD):
                pieces.append(piece)
                # An exception would cost more than to ask.
                if not (self._incoming.pending or self._tls.pending()):
                    break
            else:
                self._eof = True
        except ssl.SSLError as exc:
            self._stop(exc)
        if self._waiting:
            self._resume()
        self._pass_on()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _stop(self, exc: ssl.SSLError) -> None:
        """Note why no more can be decrypted, unless it is that the rest of a record is to come."""
        if isinstance(exc, ssl.SSLZeroReturnError):
            self._eof = True
        elif isinstance(exc, ssl.SSLEOFError):
            self._fail("the connection ended without TLS's close_notify")
        elif not isinstance(exc, ssl.SSLWantReadError):
            self._fail(f"TLS failed: {exc}")

    def _fail(self, why: str) -> None:
        if self._failure is None:
            self._failure = why
        self._waiting.clear()
        self._tell()

    def _tell(self) -> None:
        """Have those who drain look whether that goes for what they wait for."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    # Sending

    @property
    def pieces_sent(self) -> int:
        """Counts the pieces that went out."""
        return self._pipe.pieces_sent

    @property
    def clogged(self) -> bool:
        """Whether `drain` is to be called before more is written."""
        return self._pipe.clogged or bool(self._waiting)

    @property
    def unsent(self) -> bool:
        """Whether bytes were taken that are not sent yet."""
        return self._pipe.unsent or bool(self._waiting)

    @property
    def broken(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._failure is not None or self._pipe.broken

    def write(self, data: bytes) -> None:
        """Encrypt bytes and have them sent, or take them to be sent."""
        if self._failure is not None:
            return
        self._waiting.append(data)
        if len(self._waiting) == 1:
            self._resume()
            self._pass_on()

    def _pass_on(self) -> None:
        """Have sent what was encrypted."""
        if self._outgoing.pending:
            self._pipe.write(self._outgoing.read())

    def _resume(self) -> None:
        """Encrypt what waits, as far as it can be."""
        try:
            while self._waiting:
                data = self._waiting[0]
                sent = self._tls.write(data)
                if sent < len(data):
                    self._waiting[0] = data[sent:]
                else:
                    self._waiting.popleft()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as exc:
            self._fail(f"TLS failed: {exc}")
        self._tell()

    async def drain(self) -> None:
        """Wait until what was taken before the call is sent."""
        while self._waiting:
            if self._resumed is None:
                self._resumed = anyio.Event()
            await self._resumed.wait()
        if self._failure is not None:
            raise TransportLost(self._failure)
        await self._pipe.drain()

    def send_later(self, call_soon: Callable[[Callable[[], object]], None]) -> None:
        """Join what is written in one turn of the loop."""
        self._pipe.send_later(call_soon)

    def protect(self) -> None:
        """Shield writes from cancellation."""
        self._pipe.protect()

    def tend(self) -> bool:
        """Lift the shield of a write that was under way at the last call."""
        return self._pipe.tend()

    def release(self) -> None:
        """Shield nothing any more."""
        self._pipe.release()

    # Ending

    async def send_eof(self) -> bool:
        """Return False: many peers take close_notify for the end of both directions."""
        return False

    async def aclose(self) -> None:
        """Send close_notify (RFC 8446 section 6.1) and close the pipe."""
        if not self.broken:
            # It wants the peer's as well, which need not be waited for.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._pass_on()
            with contextlib.suppress(TransportLost):
                await self._pipe.drain()
        await self._pipe.aclose()

    async def abort(self) -> None:
        """Close the pipe at once."""
        self._fail("the connection was closed on this side")
        await self._pipe.abort()

    # What it is

    @property
    def secure(self) -> bool:
        """True."""
        return True

    @property
    def local_address(self) -> Address:
        """This side's address."""
        return self._pipe.local_address

    @property
    def remote_address(self) -> Address:
        """The peer's address."""
        return self._pipe.remote_address

    def extra(self, attribute: Any, default: object = ...) -> Any:
        """Return one of anyio's attributes of TLS, or of the pipe below."""
        found = _ATTRIBUTES.get(attribute)
        return self._pipe.extra(attribute, default) if found is None else found(self._tls)


_ATTRIBUTES: dict[object, Callable[[ssl.SSLObject], Any]] = {
    TLSAttribute.alpn_protocol: lambda tls: tls.selected_alpn_protocol(),
    TLSAttribute.channel_binding_tls_unique: lambda tls: tls.get_channel_binding(),
    TLSAttribute.cipher: lambda tls: tls.cipher(),
    TLSAttribute.peer_certificate: lambda tls: tls.getpeercert(False),
    TLSAttribute.peer_certificate_binary: lambda tls: tls.getpeercert(True),
    TLSAttribute.server_side: lambda tls: tls.server_side,
    TLSAttribute.shared_ciphers: lambda tls: tls.shared_ciphers() if tls.server_side else None,
    TLSAttribute.ssl_object: lambda tls: tls,
    TLSAttribute.standard_compatible: lambda tls: True,
    TLSAttribute.tls_version: lambda tls: tls.version(),
}


class _PushTls(_Tls, PushTransport, Sink):
    """The same on a pipe that reads by itself."""

    _pipe: PushTransport
    _sink: Sink
    _told: bool = False

    def start(self, sink: Sink) -> None:
        """Hand to `sink` what comes from here on."""
        self._sink = sink
        self._deliver()
        self._pipe.start(self)

    def data_received(self, data: bytes) -> None:
        """Take the next records."""
        self._feed(data)
        self._deliver()

    def reading_failed(self, error: TransportLost) -> None:
        """Note that the pipe broke."""
        self._fail(str(error))
        self._deliver()

    def _deliver(self) -> None:
        data = self._decrypt()
        if data:
            self._sink.data_received(data)
        if self._told:
            return
        if self._failure is not None:
            self._told = True
            self._sink.reading_failed(TransportLost(self._failure))
        elif self._eof:
            self._told = True
            self._sink.data_received(b"")

    def pause(self) -> None:
        """Hand nothing more to the sink for now."""
        self._pipe.pause()

    def resume(self) -> None:
        """Go on."""
        self._pipe.resume()

    def cut(self) -> None:
        """Close the pipe at once."""
        self._fail("the connection was closed on this side")
        self._pipe.cut()

    async def abort(self) -> None:
        """Close the pipe at once."""
        self.cut()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call a function with the loop's next turn."""
        self._pipe.call_soon(function)

    def call_at(self, when: float, function: Callable[[], object]) -> Callable[[], object]:
        """Call a function at a time of the loop; returns what prevents it."""
        return self._pipe.call_at(when, function)
