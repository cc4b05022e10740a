"""Graceful shutdown: ``python examples/graceful.py [port]``, and SIGTERM drains.

Each client is told by a Close of 1012 (service restart); handlers have ten seconds to end what
they are at before they are cancelled. A second signal does not wait.
"""

import signal
import sys
from functools import partial

import anyio

from asyncwebsockets import Server, Websocket, serve


async def handler(websocket: Websocket) -> None:
    async for text in websocket.iter_text():
        await websocket.send(text)
    # The client is gone or we drain: what must not be cut off goes here.
    print("saved", flush=True)


async def main(port: int) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            server: Server = await tasks.start(partial(serve, handler, "127.0.0.1", port))
            print("listening on port", server.port, flush=True)
            async for _ in signals:
                break

            async def hurry() -> None:
                async for _ in signals:
                    await server.close(grace=0)

            tasks.start_soon(hurry)
            await server.close(1012, "restarting", grace=10)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 8765)
