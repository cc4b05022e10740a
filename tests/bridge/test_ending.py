"""What a client and a mounted handler see when their ASGI server gets SIGTERM."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncwebsockets import ConnectionClosedError, open_websocket

from .ending import NOTES
from .losses import ENDINGS
from .servers import OURS, SERVERS, AsgiServer, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True),
]

ALL = [*SERVERS, OURS]


@pytest.mark.parametrize("what", ["receives", "ignores"])
@pytest.mark.parametrize("server", ALL, ids=[server.name for server in ALL])
async def test_a_server_that_is_told_to_end(server: AsgiServer, what: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with running(
        server, tmp_path / "log", "tests.bridge.ending:application", {NOTES: str(notes)}
    ) as running_server:
        async with open_websocket(f"ws://127.0.0.1:{running_server.port}/{what}") as ws:
            assert await ws.receive_text() == "ready"
            running_server.process.send_signal(signal.SIGTERM)
            seen: dict[str, Any] = {}
            try:
                assert [event async for event in ws] == []
                seen["client.close"] = ws.close_code
            except ConnectionClosedError:
                seen["client.close"] = "none"
        await anyio.to_thread.run_sync(running_server.process.wait, 30)
    if notes.exists():
        for name, value in json.loads(notes.read_text()).items():
            seen[f"handler.{name}"] = value
    assert seen in ENDINGS[server.name][what]
