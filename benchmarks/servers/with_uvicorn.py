"""uvicorn. Variants: its WebSocket implementations."""

from __future__ import annotations

from typing import Any

import uvicorn

from . import MAX_SIZE, options
from .asgi import application

if __name__ == "__main__":
    chosen = options()
    loop: Any = chosen.loop
    ws: Any = chosen.variant
    uvicorn.run(
        application(chosen.mounted),
        host="127.0.0.1",
        port=chosen.port,
        loop=loop,
        http="httptools",
        ws=ws,
        ws_max_size=MAX_SIZE,
        ws_ping_interval=chosen.ping_interval,
        ws_per_message_deflate=chosen.deflate,
        log_level="warning",
        access_log=False,
    )
