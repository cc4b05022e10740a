"""The echo servers under hypercorn that the Autobahn suite tests."""

from __future__ import annotations

import argparse
import asyncio
import socket

import hypercorn.asyncio
from hypercorn.config import Config

from asgi_bridge import WebsocketApp
from tests.autobahn import host, server

APPLICATIONS = {"bare": host.echo, "mounted": WebsocketApp(server.echo)}


async def main(application: str) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    print(sock.getsockname()[1], flush=True)
    config = Config()
    # hypercorn closes it.
    config.bind = [f"fd://{sock.detach()}"]
    config.graceful_timeout = 1
    await hypercorn.asyncio.serve(APPLICATIONS[application], config)  # type: ignore[arg-type]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("application", choices=list(APPLICATIONS))
    asyncio.run(main(parser.parse_args().application))
