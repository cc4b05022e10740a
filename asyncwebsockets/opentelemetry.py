"""Spans and metrics by OpenTelemetry, of which the package opentelemetry-api is needed.

``Settings(observer=OpenTelemetryObserver())``
"""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Literal

from ._printable import printable
from .errors import Rejected
from .observation import Observation

try:
    from opentelemetry import metrics, propagate, trace
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "spans and metrics need the package opentelemetry-api: install asyncwebsockets[otel]",
        name=_missing.name,
    ) from _missing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from .events import Address, Request
    from .observation import Connection, ConnectionRecord, Statistics

    Attributes = dict[str, str | int]

__all__ = ["OpenTelemetryObserver"]

_KINDS = {"client": trace.SpanKind.CLIENT, "server": trace.SpanKind.SERVER}

# From which status on a response is an error, as the conventions for HTTP have it.
_ERRORS_FROM = {"client": 400, "server": 500}

# What a connection is closed with where something has gone wrong, cleanly or not.
_FAILURES = frozenset((1002, 1003, 1006, 1007, 1008, 1009, 1010, 1011))

_COUNTS = ("bytes_received", "bytes_sent", "messages_received", "messages_sent")

# Seconds; those of the specification end where connections are but beginning.
_DURATIONS = (0.01, 0.1, 1, 10, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600)


class OpenTelemetryObserver:
    """An observer that makes a span of each connection, and keeps metrics of all of them.

    A span begins with the opening handshake and ends with the connection. On a server's side it is
    current in filter and handler. A client sends its context with the request, and a server goes on
    with the one it gets, by the propagator that is set for the program.

    The metrics are, for "client" and for "server": ``websocket.server.active_connections``,
    ``websocket.server.connection.duration``, ``websocket.server.messages`` and
    ``websocket.server.io``. One observer is enough for a program.

    Args:
        tracer_provider: makes the spans; by default the one that is set for the program.
        meter_provider: has the metrics; by default the one that is set for the program.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        name, release = "asyncwebsockets", version("asyncwebsockets")
        self._tracer = trace.get_tracer(name, release, tracer_provider)
        meter = metrics.get_meter(name, release, meter_provider)
        self._sides = {"client": _Side(meter, "client"), "server": _Side(meter, "server")}

    def __call__(self, role: Literal["client", "server"], request: Request, /) -> Observation:
        """Return what makes the span of a handshake and its connection."""
        return _Observed(self._tracer, self._sides[role], role, request)


class _Side:
    """The metrics of all connections of one role."""

    def __init__(self, meter: Meter, role: str) -> None:
        prefix = f"websocket.{role}"
        self.active = meter.create_up_down_counter(
            f"{prefix}.active_connections", "{connection}", "Connections that are open."
        )
        self.duration = meter.create_histogram(
            f"{prefix}.connection.duration",
            "s",
            "How long connections were open.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        # Counted when they are asked for, from another thread, so that a message costs nothing.
        meter.create_observable_counter(
            f"{prefix}.messages", [self._messages], "{message}", "Messages that came and went."
        )
        meter.create_observable_counter(
            f"{prefix}.io", [self._bytes], "By", "Bytes of frames that came and went."
        )
        self._lock = Lock()
        self._open: set[Connection] = set()
        # What those have brought that have ended.
        self._ended: Counter[str] = Counter()

    def opened(self, connection: Connection) -> None:
        self.active.add(1)
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: Connection, statistics: Statistics) -> None:
        self.active.add(-1)
        with self._lock:
            self._open.discard(connection)
            for name in _COUNTS:
                self._ended[name] += getattr(statistics, name)

    def _messages(self, options: CallbackOptions) -> Iterable[metrics.Observation]:
        return self._observe("messages_received", "messages_sent")

    def _bytes(self, options: CallbackOptions) -> Iterable[metrics.Observation]:
        return self._observe("bytes_received", "bytes_sent")

    def _observe(self, received: str, sent: str) -> Iterable[metrics.Observation]:
        with self._lock:
            connections, ended = list(self._open), self._ended.copy()
        # One that ends meanwhile goes on saying what it has brought.
        found = [connection.statistics for connection in connections]
        for name, direction in ((received, "receive"), (sent, "transmit")):
            total = ended[name] + sum(getattr(statistics, name) for statistics in found)
            yield metrics.Observation(total, {"network.io.direction": direction})


class _Observed(Observation):
    """The span of one handshake and its connection."""

    def __init__(
        self, tracer: Tracer, side: _Side, role: Literal["client", "server"], request: Request
    ) -> None:
        self._side = side
        self._role = role
        self._connection: Connection | None = None
        self._span = tracer.start_span(
            "websocket",
            _context_of(request) if role == "server" else None,
            _KINDS[role],
            {
                **_describe(role, request),
                **_addresses(request.local_address, request.remote_address),
            },
        )
        if role == "client":
            fields: dict[str, str] = {}
            propagate.inject(fields, trace.set_span_in_context(self._span))
            self.headers = tuple(fields.items())

    def activate(self) -> AbstractContextManager[object]:
        """Return a context manager in which the span is current."""
        return trace.use_span(
            self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False
        )

    def failed(self, error: BaseException, status: int | None) -> None:
        """End the span of a handshake that came to nothing."""
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if status is None or status >= _ERRORS_FROM[self._role]:
            # A status alone says less than what has led to it, where that is known.
            known = status is None or not isinstance(error, Rejected)
            self._error(type(error).__qualname__ if known else str(status), str(error))
        self._span.end()

    def opened(self, connection: Connection) -> None:
        """Note what the handshake has led to."""
        self._connection = connection
        self._span.set_attributes(_addresses(connection.local_address, connection.remote_address))
        self._span.set_attribute("http.response.status_code", connection.response.status)
        if connection.subprotocol is not None:
            self._span.set_attribute("websocket.subprotocol", printable(connection.subprotocol))
        self._span.add_event("opened")
        self._side.opened(connection)

    def closed(self, record: ConnectionRecord) -> None:
        """End the span of a connection."""
        attributes: Attributes = {"websocket.close.code": record.close_code}
        if not record.clean or record.close_code in _FAILURES:
            attributes["error.type"] = str(record.close_code)
            self._error(str(record.close_code), printable(record.close_reason))
        self._side.duration.record(record.statistics.duration, attributes)
        self._span.set_attribute("websocket.close.code", record.close_code)
        if record.closed_by is not None:
            self._span.set_attribute("websocket.closed_by", record.closed_by)
        self._span.end()
        # It holds this in turn.
        connection, self._connection = self._connection, None
        assert connection is not None
        self._side.closed(connection, record.statistics)

    def _error(self, kind: str, description: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR, description)


def _describe(role: str, request: Request) -> Attributes:
    """Return what the conventions for HTTP say of a request; of its target, no query."""
    host, port = _split(request.host)
    attributes: Attributes = {
        "http.request.method": request.method,
        "url.scheme": "wss" if request.secure else "ws",
        "url.path": printable(request.path),
        "server.address": printable(host),
        "server.port": port or (443 if request.secure else 80),
        "network.protocol.name": "websocket",
    }
    agent = request.header("User-Agent")
    if agent is not None:
        attributes["user_agent.original"] = printable(agent)
    if role == "server" and isinstance(request.remote_address, tuple):
        attributes["client.address"] = request.remote_address[0]
    return attributes


def _split(host: str) -> tuple[str, int | None]:
    """Return name and port of a Host header field, which may be anything a peer has sent."""
    name, _, port = host.rpartition(":")
    if name and len(port) <= 5 and port.isascii() and port.isdigit():
        return name.strip("[]"), int(port)
    return host.strip("[]"), None


def _addresses(local: Address, remote: Address) -> Attributes:
    attributes: Attributes = {}
    for end, address in (("local", local), ("peer", remote)):
        if isinstance(address, tuple):
            attributes["network.transport"] = "tcp"
            attributes[f"network.{end}.address"], attributes[f"network.{end}.port"] = address
        elif address:
            attributes["network.transport"] = "unix"
            attributes[f"network.{end}.address"] = address
    return attributes


def _context_of(request: Request) -> Context:
    """Return the context that a client has sent."""
    fields: dict[str, list[str]] = {}
    for name, value in request.headers:
        fields.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return propagate.extract(fields)
