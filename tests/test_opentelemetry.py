"""Spans and metrics, as OpenTelemetry's own SDK collects them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from asyncwebsockets import (
    ConnectionClosed,
    HandshakeError,
    Rejected,
    Settings,
    open_websocket,
    open_websocket_client,
    open_websocket_server,
)
from asyncwebsockets.opentelemetry import OpenTelemetryObserver

from .conftest import cut, memory_pair, until
from .frames import REQUEST, frame
from .test_observation import decide, send_raw, serving, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from asyncwebsockets import Request, Websocket

pytestmark = pytest.mark.anyio


class Collected:
    """An observer, and what it has told."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.observer = OpenTelemetryObserver(
            tracer_provider=self.tracers, meter_provider=self.meters
        )
        self.settings = Settings(observer=self.observer)

    def spans(self) -> list[ReadableSpan]:
        """Return the spans that have ended."""
        return list(self._spans.get_finished_spans())

    def span(self, kind: SpanKind) -> ReadableSpan:
        (found,) = (span for span in self.spans() if span.kind is kind)
        return found

    def metrics(self) -> dict[str, Any]:
        """Return what is known now: the points of each metric, by name."""
        data: Any = self._reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def values(self, name: str) -> dict[Any, Any]:
        """Return the values of a metric, by direction if it has one."""
        return {
            point.attributes.get("network.io.direction"): point.value
            for point in self.metrics()[name]
        }

    def shutdown(self) -> None:
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def collected() -> Iterator[Collected]:
    collected = Collected()
    yield collected
    collected.shutdown()


async def answer(ws: Websocket) -> None:
    await ws.send(f"hello, {await ws.receive_text()}")
    await ws.wait_closed()


async def test_a_connection_is_a_span_on_each_side(collected: Collected) -> None:
    async with serving(answer, settings=collected.settings) as server:
        url = f"ws://127.0.0.1:{server.port}/path?secret"
        async with open_websocket(url, {"User-Agent": "me\x9b"}, settings=collected.settings) as ws:
            await ws.send("you")
            await ws.receive_text()
            own = ws.local_address
            assert collected.spans() == []
        await until(lambda: len(collected.spans()) == 2)
    assert isinstance(own, tuple)
    for kind, here, there, by in (
        (SpanKind.CLIENT, own[1], server_port(url), "local"),
        (SpanKind.SERVER, server_port(url), own[1], "remote"),
    ):
        span = collected.span(kind)
        attributes = dict(span.attributes or {})
        assert attributes.pop("client.address", "127.0.0.1") == "127.0.0.1"
        assert attributes == {
            "http.request.method": "GET",
            "http.response.status_code": 101,
            "url.scheme": "ws",
            "url.path": "/path",
            "server.address": "127.0.0.1",
            "server.port": server_port(url),
            "user_agent.original": "me\\x9b",
            "network.protocol.name": "websocket",
            "network.transport": "tcp",
            "network.local.address": "127.0.0.1",
            "network.local.port": here,
            "network.peer.address": "127.0.0.1",
            "network.peer.port": there,
            "websocket.close.code": 1000,
            "websocket.closed_by": by,
        }
        assert span.name == "websocket"
        assert span.status.status_code is StatusCode.UNSET
        assert [event.name for event in span.events] == ["opened"]
        assert "secret" not in span.to_json()


def server_port(url: str) -> int:
    return int(url.split(":")[2].partition("/")[0])


async def test_the_context_goes_from_the_caller_to_the_handler(collected: Collected) -> None:
    tracer = collected.tracers.get_tracer("tests")

    async def filter(request: Request) -> str:
        with tracer.start_as_current_span("filter"):
            return "chat"

    async def handler(ws: Websocket) -> None:
        await ws.receive()
        with tracer.start_as_current_span("handler"):
            await anyio.lowlevel.checkpoint()

    async with serving(handler, filter=filter, settings=collected.settings) as server:
        with tracer.start_as_current_span("caller"):
            async with open_websocket(
                f"ws://127.0.0.1:{server.port}/",
                subprotocols=["chat"],
                settings=collected.settings,
            ) as ws:
                # It is the caller's that is current there.
                assert trace.get_current_span().name == "caller"  # type: ignore[attr-defined]
                await ws.send("hello")
                await wait_for_end(ws)
    spans = {span.name: span for span in collected.spans() if span.name != "websocket"}
    client, there = (collected.span(kind) for kind in (SpanKind.CLIENT, SpanKind.SERVER))
    assert parent(client) == spans["caller"].context.span_id
    assert parent(there) == client.context.span_id
    assert parent(spans["filter"]) == parent(spans["handler"]) == there.context.span_id
    assert (there.attributes or {})["websocket.subprotocol"] == "chat"
    assert not trace.get_current_span().is_recording()


def parent(span: ReadableSpan) -> int:
    """Return the number of its parent's span, which is of the same trace."""
    assert span.parent is not None
    assert span.parent.trace_id == span.context.trace_id
    return span.parent.span_id


async def test_metrics_know_of_connections_while_they_are_open(collected: Collected) -> None:
    async with serving(answer, settings=collected.settings) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        async with open_websocket(url, settings=collected.settings) as ws:
            await ws.send("you")
            await ws.receive_text()
            for role, received, sent in (("client", 12, 9), ("server", 9, 12)):
                prefix = f"websocket.{role}"
                assert collected.values(f"{prefix}.active_connections") == {None: 1}
                assert collected.values(f"{prefix}.messages") == {"receive": 1, "transmit": 1}
                assert collected.values(f"{prefix}.io") == {"receive": received, "transmit": sent}
                assert f"{prefix}.connection.duration" not in collected.metrics()
        await until(lambda: len(collected.spans()) == 2)
    found = collected.metrics()
    for role, received, sent in (("client", 16, 17), ("server", 17, 16)):
        prefix = f"websocket.{role}"
        assert collected.values(f"{prefix}.active_connections") == {None: 0}
        assert collected.values(f"{prefix}.messages") == {"receive": 1, "transmit": 1}
        assert collected.values(f"{prefix}.io") == {"receive": received, "transmit": sent}
        (duration,) = found[f"{prefix}.connection.duration"]
        assert (duration.count, duration.attributes) == (1, {"websocket.close.code": 1000})
        assert 0 < duration.sum < 60


@pytest.mark.parametrize(
    ("path", "status", "client_error", "server_error"),
    [("/no", 403, "403", None), ("/error", 500, "500", "ValueError")],
)
async def test_a_handshake_that_came_to_nothing_is_a_span(
    collected: Collected, path: str, status: int, client_error: str, server_error: str | None
) -> None:
    async with serving(filter=decide, settings=collected.settings) as server:
        with pytest.raises(Rejected):
            async with open_websocket(
                f"ws://127.0.0.1:{server.port}{path}", settings=collected.settings
            ):
                pytest.fail("it was rejected")
        await until(lambda: len(collected.spans()) == 2)
    for kind, error in ((SpanKind.CLIENT, client_error), (SpanKind.SERVER, server_error)):
        span = collected.span(kind)
        attributes = span.attributes or {}
        assert attributes["http.response.status_code"] == status
        assert attributes.get("error.type") == error
        assert (span.status.status_code is StatusCode.ERROR) == (error is not None)
        assert not span.events
    assert "websocket.server.connection.duration" not in collected.metrics()


async def test_an_error_has_a_type(collected: Collected) -> None:
    near, far = memory_pair()
    await far.aclose()
    with pytest.raises(HandshakeError):
        async with open_websocket_client(near, ("::1", 80), "/", settings=collected.settings):
            pytest.fail("nobody has answered")
    span = collected.span(SpanKind.CLIENT)
    attributes = span.attributes or {}
    assert attributes["error.type"] == "HandshakeError"
    assert attributes["server.address"] == "::1"
    assert attributes["server.port"] == 80
    assert "network.peer.address" not in attributes
    assert "lost in the handshake" in (span.status.description or "")


@pytest.mark.parametrize(
    ("wire", "code", "by"),
    [(frame(1, b"\xff", masked=True), 1007, "local"), (b"", 1006, None)],
    ids=["a broken rule", "a line that is cut"],
)
async def test_an_end_that_is_none_is_an_error(
    collected: Collected, wire: bytes, code: int, by: str | None
) -> None:
    near, far = memory_pair()
    await near.send(REQUEST + wire)
    with suppress(ConnectionClosed):
        async with open_websocket_server(far, settings=collected.settings) as ws:
            if not wire:
                await cut(near)
            await wait_for_end(ws)
    span = collected.span(SpanKind.SERVER)
    attributes = span.attributes or {}
    assert attributes["error.type"] == str(code)
    assert attributes["websocket.close.code"] == code
    assert attributes.get("websocket.closed_by") == by
    assert span.status.status_code is StatusCode.ERROR
    (duration,) = collected.metrics()["websocket.server.connection.duration"]
    assert duration.attributes == {"websocket.close.code": code, "error.type": str(code)}


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        (b"example.com:8000", "example.com", 8000),
        (b"[::1]:8000", "::1", 8000),
        (b"[::1]", "::1", 80),
        (b"a:" + b"9" * 5000, "a:" + "9" * 5000, 80),
    ],
)
async def test_any_host_can_be_told_of(
    collected: Collected, host: bytes, address: str, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(filter=decide, settings=collected.settings) as server:
        request = REQUEST.replace(b"example.com", host).replace(b"/path", b"/no")
        await send_raw(server, request)
        await until(lambda: bool(collected.spans()))
    attributes = collected.span(SpanKind.SERVER).attributes or {}
    assert (attributes["server.address"], attributes["server.port"]) == (address, port)
    assert not caplog.records


async def test_a_unix_socket_is_told_of(collected: Collected, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    async with (
        serving(uds=path, settings=collected.settings),
        await anyio.connect_unix(path) as stream,
    ):
        async with open_websocket_client(stream, "host", "/", settings=collected.settings):
            pass
        await until(lambda: len(collected.spans()) == 2)
    attributes = collected.span(SpanKind.CLIENT).attributes or {}
    assert attributes["network.transport"] == "unix"
    assert attributes["network.peer.address"] == path
    assert "network.peer.port" not in attributes
    assert "client.address" not in (collected.span(SpanKind.SERVER).attributes or {})


def test_without_the_package_it_is_said_what_to_install() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['opentelemetry'] = None; import asyncwebsockets.opentelemetry",
        ],
        capture_output=True,
        check=False,
    )
    assert b"install asyncwebsockets[otel]" in done.stderr
