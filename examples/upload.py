"""A file upload with progress: the file is one message, never whole in memory at either end.

``python examples/upload.py serve DIRECTORY [port]``, then
``python examples/upload.py send FILE [url]``.
"""

import sys
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import anyio

from asyncwebsockets import Websocket, open_websocket, serve

PIECE = 64 * 1024
REPORT_EVERY = 2**20
MAX_SIZE = 2**34


async def receive_file(websocket: Websocket, directory: Path) -> None:
    announced = await websocket.receive_json()
    size, received, reported = announced["size"], 0, 0
    if not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
        await websocket.close(1009, "too big")
        return
    # The name is ours: what a client calls its file says nothing about where it may go.
    with NamedTemporaryFile(dir=directory, prefix="upload-", delete=False) as file:
        async with websocket.receive_stream() as pieces:
            async for piece in pieces:
                received += len(piece)
                if isinstance(piece, str) or received > size:
                    break
                await anyio.to_thread.run_sync(file.write, piece)
                if received - reported >= REPORT_EVERY:
                    reported = received
                    await websocket.send_json({"received": received})
    if received != size:
        await anyio.Path(file.name).unlink()
        await websocket.close(1008, f"expected {size} bytes")
        return
    await websocket.send_json({"stored": Path(file.name).name, "received": received})


async def send_file(path: Path, url: str) -> None:
    size = (await anyio.Path(path).stat()).st_size
    async with open_websocket(url) as websocket, anyio.create_task_group() as tasks:

        async def show_progress() -> None:
            progress = {"received": 0}
            while "stored" not in progress:
                progress = await websocket.receive_json()
                print(f"{progress['received'] / max(size, 1):.0%}")
            print(f"stored as {progress['stored']}")

        tasks.start_soon(show_progress)
        await websocket.send_json({"size": size})
        async with websocket.message() as message, await anyio.open_file(path, "rb") as file:
            while piece := await file.read(PIECE):
                await message.send(piece)
            if not size:
                await message.send(b"")


if __name__ == "__main__":
    command, path, *rest = sys.argv[1:]
    if command == "serve":
        handler = partial(receive_file, directory=Path(path))
        anyio.run(serve, handler, "127.0.0.1", int(rest[0]) if rest else 8765)
    else:
        anyio.run(send_file, Path(path), rest[0] if rest else "ws://127.0.0.1:8765/")
