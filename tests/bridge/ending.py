"""The application that is running when its server is told to end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from asgi_bridge import WebsocketApp

if TYPE_CHECKING:
    from asyncwebsockets import Websocket

#: The environment has the path of the file under that name in which the handler notes its end.
NOTES = "ENDING_NOTES"


def keep(note: dict[str, Any]) -> None:
    Path(os.environ[NOTES]).write_text(json.dumps(note))


async def handle(ws: Websocket) -> None:
    """Receive; at ``/ignores``, wait for something else."""
    note: dict[str, Any] = {}
    try:
        await ws.send("ready")
        if ws.request.path == "/ignores":
            await anyio.sleep_forever()
        await ws.receive()
    except BaseException as exc:
        cancelled = isinstance(exc, anyio.get_cancelled_exc_class())
        note["raised"] = "cancellation" if cancelled else type(exc).__name__
        raise
    finally:
        keep({**note, "code": ws.close_code})


application = WebsocketApp(handle)
