"""The same handlers, whatever carries the connection."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import (
    ConnectionClosed,
    HandshakeError,
    Server,
    open_websocket_server,
    serve,
)

from ..conftest import memory_pair
from .app import application, layered
from .handlers import filter, handle
from .losses import HOSTED, IN_PROCESS, LOSSES, MEMORY, NOTHING, TCP, UNIX
from .scenarios import SCENARIOS, Client, Scenario
from .servers import SERVERS, AsgiServer, Fleet
from .table import PAGE, table
from .wire import in_memory, on_tcp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

# What the handlers and filters of the scenarios raise on purpose.
HANDLERS_OWN = (RuntimeError, ValueError, ZeroDivisionError)

every_scenario = pytest.mark.parametrize(
    "scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS]
)


async def play(scenario: Scenario, client: Client) -> dict[str, Any]:
    """Return what both sides have noted, by name."""
    seen = await scenario.act(client)
    noted = {f"client.{name}": value for name, value in seen.items()}
    if scenario.handler is not None and seen.get("status", 101) == 101:
        for name, value in (await client.record()).items():
            noted[f"handler.{name}"] = value
    return noted


def expected(scenario: Scenario, carrier: str) -> dict[str, Any]:
    noted = {f"client.{name}": value for name, value in scenario.client.items()}
    for name, value in (scenario.handler or {}).items():
        noted[f"handler.{name}"] = value
    noted.update(LOSSES[carrier].get(scenario.name, {}))
    return {name: value for name, value in noted.items() if value != NOTHING}


@asynccontextmanager
async def serving(**kwargs: Any) -> AsyncGenerator[Server, None]:
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve, handle, filter=filter, **kwargs))
        yield server
        await server.close()


@every_scenario
async def test_on_tcp(scenario: Scenario) -> None:
    async with serving(host="127.0.0.1", port=0) as server:
        client = Client(partial(anyio.connect_tcp, "127.0.0.1", server.port))
        assert await play(scenario, client) == expected(scenario, TCP)


@every_scenario
async def test_on_a_unix_socket(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(uds=path):
        client = Client(partial(anyio.connect_unix, path))
        assert await play(scenario, client) == expected(scenario, UNIX)


@every_scenario
async def test_on_a_memory_pair(scenario: Scenario) -> None:
    async with anyio.create_task_group() as tasks:

        async def run(stream: Any) -> None:
            # What `serve` logs comes out here.
            with suppress(HandshakeError, ConnectionClosed, *HANDLERS_OWN):
                async with open_websocket_server(stream, filter) as ws:
                    await handle(ws)

        async def connect() -> Any:
            near, far = memory_pair()
            tasks.start_soon(run, far)
            return near

        assert await play(scenario, Client(connect)) == expected(scenario, MEMORY)


every_mount = pytest.mark.parametrize(
    ("app", "root"),
    [
        pytest.param(application, "", id="bare"),
        pytest.param(layered, "/mounted", id="behind middleware"),
    ],
)


@every_mount
@every_scenario
async def test_mounted_in_process(scenario: Scenario, app: Any, root: str) -> None:
    async with in_memory(app) as connect:
        client = Client(connect, root)
        assert await play(scenario, client) == expected(scenario, IN_PROCESS)


@every_mount
@every_scenario
async def test_mounted_in_our_own_host(scenario: Scenario, app: Any, root: str) -> None:
    async with on_tcp(app) as connect:
        client = Client(connect, root)
        assert await play(scenario, client) == expected(scenario, HOSTED)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", SERVERS, ids=[server.name for server in SERVERS])
@every_scenario
async def test_mounted(server: AsgiServer, scenario: Scenario, fleet: Fleet) -> None:
    client = Client(partial(anyio.connect_tcp, "127.0.0.1", fleet.port(server)))
    assert await play(scenario, client) == expected(scenario, server.name)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("server", SERVERS, ids=[server.name for server in SERVERS])
async def test_mounted_behind_middleware(server: AsgiServer, fleet: Fleet) -> None:
    port = fleet.port(server, "tests.bridge.app:layered")
    for scenario in SCENARIOS:
        client = Client(partial(anyio.connect_tcp, "127.0.0.1", port), "/mounted")
        noted = await play(scenario, client)
        assert noted == expected(scenario, server.name), scenario.name


def test_each_loss_is_one() -> None:
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    for carrier, by_scenario in LOSSES.items():
        for name, losses in by_scenario.items():
            noted = expected(scenarios[name], TCP)
            for key, value in losses.items():
                assert noted.get(key, NOTHING) != value, (carrier, name, key)


def test_the_table_is_up_to_date() -> None:
    assert PAGE.read_text() == table(), "run python -m tests.bridge.table"
