"""A live dashboard, pushed to a page that plots it: ``hypercorn examples.dashboard:app``.

A page that is slow has it measure less often: nothing piles up for it.
"""

import os
import time
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route

from asgi_bridge import WebsocketApp
from asyncwebsockets import Websocket, origin_filter

PAGE = Path(__file__).with_name("dashboard.html")
EVERY = 0.25


async def push(websocket: Websocket) -> None:
    async with anyio.create_task_group() as tasks:

        async def measure() -> None:
            while True:
                load, _, _ = os.getloadavg()
                await websocket.send_json({"time": time.time(), "value": load})
                await anyio.sleep(EVERY)

        tasks.start_soon(measure)
        await websocket.wait_closed()
        tasks.cancel_scope.cancel()


app = Starlette(
    routes=[
        Route("/", lambda request: FileResponse(PAGE)),
        Mount("/live", WebsocketApp(push, origin_filter())),
    ]
)
