"""The client of README: it says hello and prints the answer."""

import sys

import anyio

from asyncwebsockets import open_websocket


async def main(url: str) -> None:
    async with open_websocket(url) as websocket:
        await websocket.send("hello")
        print(await websocket.receive_text())


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8765/"
    anyio.run(main, address)  # or: anyio.run(main, address, backend="trio")
