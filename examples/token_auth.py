"""Authentication by a token: ``TOKEN=secret python examples/token_auth.py [port]``.

Programs send it in the handshake's Authorization: a filter sees it, and answers a wrong one with
401. A page in a browser cannot set that header field, and sends it in its first message instead. A
token does not belong into the URL, which ends up in logs.
"""

import os
import secrets
import sys
from functools import partial

import anyio

from asyncwebsockets import (
    ConnectionClosed,
    Reject,
    Request,
    UnexpectedMessage,
    Websocket,
    serve,
)

TOKEN = os.environ.get("TOKEN", "")
SECONDS_TO_SAY_IT = 5


def is_token(text: str) -> bool:
    return bool(TOKEN) and secrets.compare_digest(text.encode(), TOKEN.encode())


async def filter(request: Request) -> object:
    said = request.header("Authorization")
    if said is None:
        return True  # the first message has to say it
    scheme, _, token = said.partition(" ")
    if scheme.lower() == "bearer" and is_token(token):
        return True
    return Reject(401, [("WWW-Authenticate", "Bearer")], b"a valid token, please\n")


async def authenticate(websocket: Websocket) -> bool:
    """Whether the client has shown its token, now or before."""
    if websocket.request.header("Authorization") is not None:
        return True  # the filter has looked at it
    try:
        with anyio.fail_after(SECONDS_TO_SAY_IT):
            return is_token(await websocket.receive_text())
    except (TimeoutError, UnexpectedMessage, ConnectionClosed):
        return False


async def handler(websocket: Websocket) -> None:
    if not await authenticate(websocket):
        await websocket.close(3000, "a valid token, please")  # IANA: Unauthorized
        return
    await websocket.send("welcome")
    async for text in websocket.iter_text():
        await websocket.send(text)


if __name__ == "__main__":
    run = partial(serve, handler, filter=filter)
    anyio.run(run, "127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8765)
