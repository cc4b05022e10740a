"""The echo client that the Autobahn suite tests."""

from __future__ import annotations

import argparse
from functools import partial

import anyio

from asyncwebsockets import Deflate, Settings, WebsocketError, open_websocket
from asyncwebsockets.events import BytesMessage, TextMessage

# Pings of ours would count among the events of a case. The suite sends gigabytes to be
# compressed and does not look at how small they get.
SETTINGS = Settings(compression=Deflate(level=1), ping_interval=None)


async def run_case(url: str) -> None:
    try:
        async with open_websocket(url, settings=SETTINGS) as ws:
            async for evt in ws:
                if isinstance(evt, (TextMessage, BytesMessage)):
                    await ws.send(evt.data)
    except WebsocketError:
        # Many cases end so; the suite knows which may.
        pass


async def main(url: str, agent: str) -> None:
    async with open_websocket(f"{url}/getCaseCount") as ws:
        count = int(await ws.receive_text())
    for number in range(1, count + 1):
        await run_case(f"{url}/runCase?case={number}&agent={agent}")
    async with open_websocket(f"{url}/updateReports?agent={agent}") as ws:
        await ws.wait_closed()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=["asyncio", "uvloop", "trio"])
    parser.add_argument("url")
    parser.add_argument("agent")
    args = parser.parse_args()
    call = partial(main, args.url, args.agent)
    if args.backend == "uvloop":
        anyio.run(call, backend="asyncio", backend_options={"use_uvloop": True})
    else:
        anyio.run(call, backend=args.backend)
