"""JSON-RPC 2.0 over a WebSocket: ``python examples/jsonrpc.py [port]``.

Calls of one connection run side by side; single requests, notifications and batches are answered as
the specification (jsonrpc.org) says.
"""

import inspect
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from asyncwebsockets import ConnectionClosed, Websocket, serve


async def add(a: float, b: float) -> float:
    return a + b


async def slow_echo(text: str, seconds: float = 0.1) -> str:
    await anyio.sleep(seconds)
    return text


METHODS: dict[str, Callable[..., Awaitable[Any]]] = {"add": add, "slow_echo": slow_echo}


class RPCError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.answer = {"code": code, "message": message}


async def call(request: dict[str, Any]) -> Any:
    method = METHODS.get(request["method"])
    if method is None:
        raise RPCError(-32601, "Method not found")
    params = request.get("params", [])
    args, kwargs = ([], params) if isinstance(params, dict) else (params, {})
    try:
        inspect.signature(method).bind(*args, **kwargs)
    except TypeError as exc:
        raise RPCError(-32602, f"Invalid params: {exc}") from None
    try:
        return await method(*args, **kwargs)
    except Exception:
        logging.exception("%s failed", request["method"])
        raise RPCError(-32603, "Internal error") from None


async def answer(request: Any) -> dict[str, Any] | None:
    """Return the response to one request, None to a notification."""
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        error = {"code": -32600, "message": "Invalid Request"}
        return {"jsonrpc": "2.0", "id": None, "error": error}
    response: dict[str, Any] = {"jsonrpc": "2.0", "id": request.get("id")}
    try:
        response["result"] = await call(request)
    except RPCError as exc:
        response["error"] = exc.answer
    return response if "id" in request else None


async def handle(websocket: Websocket, text: str) -> None:
    try:
        received = json.loads(text)
    except ValueError:
        error = {"code": -32700, "message": "Parse error"}
        reply: Any = {"jsonrpc": "2.0", "id": None, "error": error}
    else:
        if isinstance(received, list) and received:
            answers = [await answer(request) for request in received]
            reply = [response for response in answers if response is not None]
        else:
            reply = await answer(received)
    if reply:
        try:
            await websocket.send_json(reply)
        except ConnectionClosed:
            return  # whoever asked has left


async def handler(websocket: Websocket) -> None:
    running = anyio.CapacityLimiter(100)  # beyond it, the peer is made to wait

    async with anyio.create_task_group() as tasks:

        async def run(text: str, *, task_status: Any) -> None:
            async with running:
                task_status.started()
                await handle(websocket, text)

        async for text in websocket.iter_text():
            await tasks.start(run, text)


if __name__ == "__main__":
    anyio.run(serve, handler, "127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8765)
