"""A TCP tunnel over a WebSocket, both ends.

``python examples/tunnel.py exit HOST PORT [8765]`` connects to HOST and PORT for each WebSocket;
``python examples/tunnel.py entry 9000 [ws://127.0.0.1:8765/]`` listens on a TCP port and opens one.

TCP can close one direction and keep the other, a WebSocket cannot: an empty binary message says
that its sender has no more bytes. Nothing else makes an empty message.
"""

import sys
from functools import partial

import anyio
from anyio.abc import ByteStream, SocketAttribute

from asyncwebsockets import ConnectionClosed, Websocket, open_websocket, serve

END = b""


async def tunnel(websocket: Websocket, stream: ByteStream) -> None:
    """Carry bytes both ways until both directions have ended."""
    async with anyio.create_task_group() as tasks:

        async def to_stream() -> None:
            try:
                while (data := await websocket.receive_bytes()) != END:
                    await stream.send(data)
                await stream.send_eof()
            except (ConnectionClosed, anyio.BrokenResourceError):
                tasks.cancel_scope.cancel()  # one side is gone, and so is the tunnel

        tasks.start_soon(to_stream)
        try:
            async for data in stream:
                await websocket.send(data)
            await websocket.send(END)
        except (ConnectionClosed, anyio.BrokenResourceError):
            tasks.cancel_scope.cancel()


async def exit_end(websocket: Websocket, host: str, port: int) -> None:
    try:
        stream = await anyio.connect_tcp(host, port)
    except OSError as exc:
        await websocket.close(1011, str(exc))
        return
    async with stream:
        await tunnel(websocket, stream)


async def entry_end(stream: ByteStream, url: str) -> None:
    async with stream:
        try:
            async with open_websocket(url) as websocket:
                await tunnel(websocket, stream)
        except OSError as exc:
            print(f"no tunnel: {exc}", file=sys.stderr)


async def listen(port: int, url: str) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port) as listener:
        print("listening on port", listener.extra(SocketAttribute.local_port), flush=True)
        await listener.serve(partial(entry_end, url=url))


if __name__ == "__main__":
    end, *rest = sys.argv[1:]
    if end == "exit":
        handler = partial(exit_end, host=rest[0], port=int(rest[1]))
        anyio.run(serve, handler, "127.0.0.1", int(rest[2]) if len(rest) > 2 else 8765)
    else:
        anyio.run(listen, int(rest[0]), rest[1] if len(rest) > 1 else "ws://127.0.0.1:8765/")
