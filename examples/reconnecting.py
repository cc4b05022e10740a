"""A client that comes back: ``python examples/reconnecting.py [url]``, for examples/graceful.py.

Restart the server, or kill it: the client says what it is at and goes on with the next connection.
A server that closes with 1000 is done, and then so is this client.
"""

import sys
from contextlib import suppress

import anyio

from asyncwebsockets import ConnectionClosed, ConnectionClosedOK, reconnect


async def decide(error: Exception, delay: float | None) -> float | None:
    if isinstance(error, ConnectionClosedOK) and error.code == 1000:
        print("the server is done", flush=True)
        return None
    if delay is not None:
        print(f"{type(error).__name__}: the next attempt in {delay:.1f} s", flush=True)
    return delay


async def main(url: str) -> None:
    async with reconnect(url, decide=decide) as connections:
        async for websocket in connections:
            print("connected", flush=True)
            with suppress(ConnectionClosed):
                # What a server forgets when it is restarted is said anew on each connection.
                await websocket.send("hello")
                async for text in websocket.iter_text():
                    print(text, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765/")
