"""asgi_bridge's host: an ASGI application on this library's sockets."""

from __future__ import annotations

import anyio

from asgi_bridge import serve_app
from asyncwebsockets import Settings

from . import MAX_SIZE, Options, options
from .asgi import application


async def main(chosen: Options) -> None:
    settings = Settings(max_message_size=MAX_SIZE, ping_interval=chosen.ping_interval)
    await serve_app(
        application(chosen.mounted), "127.0.0.1", chosen.port, ssl=chosen.tls, settings=settings
    )


if __name__ == "__main__":
    chosen = options()
    if chosen.loop == "trio":
        anyio.run(main, chosen, backend="trio")
    else:
        anyio.run(main, chosen, backend_options={"use_uvloop": chosen.loop == "uvloop"})
