"""hypercorn."""

from __future__ import annotations

from functools import partial

import hypercorn.asyncio
import hypercorn.trio
from hypercorn.config import Config

from . import MAX_SIZE, Options, options, run
from .asgi import application


async def main(chosen: Options) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{chosen.port}"]
    config.loglevel = "WARNING"
    config.websocket_max_message_size = MAX_SIZE
    config.websocket_ping_interval = chosen.ping_interval
    serve = hypercorn.trio.serve if chosen.loop == "trio" else hypercorn.asyncio.serve
    await serve(application(chosen.mounted), config)


if __name__ == "__main__":
    chosen = options()
    run(partial(main, chosen), chosen.loop)
