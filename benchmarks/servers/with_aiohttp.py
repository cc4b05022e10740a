"""aiohttp."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import WSMsgType, web

from . import MAX_SIZE, Options, options, run

people: set[web.WebSocketResponse] = set()


async def handle(chosen: Options, request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(
        compress=chosen.deflate,
        max_msg_size=MAX_SIZE,
        heartbeat=chosen.ping_interval,
    )
    await ws.prepare(request)
    people.add(ws)
    async for message in ws:
        for member in people if chosen.broadcast else (ws,):
            if message.type is WSMsgType.TEXT:
                await member.send_str(message.data)
            else:
                await member.send_bytes(message.data)
    people.discard(ws)
    return ws


async def main(chosen: Options) -> None:
    application = web.Application()
    application.router.add_get("/", partial(handle, chosen))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", chosen.port, ssl_context=chosen.tls).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    chosen = options()
    run(partial(main, chosen), chosen.loop)
