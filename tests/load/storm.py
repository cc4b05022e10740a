"""Clients that knock at a full server, in a process of their own.

``python -m tests.load.storm BACKEND PORT SECONDS`` prints how often each answer came, as JSON: a
status, or "cut".
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import anyio

from ..frames import REQUEST
from .measure import run

#: Clients at a time.
CLIENTS = 200


async def main(port: int, seconds: float) -> None:
    answers: Counter[str] = Counter()

    async def knock() -> None:
        while True:
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                try:
                    await stream.send(REQUEST)
                    answers[(await stream.receive()).split()[1].decode()] += 1
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    answers["cut"] += 1

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:
            for _ in range(CLIENTS):
                tasks.start_soon(knock)
    print(json.dumps(answers))


if __name__ == "__main__":
    run(main, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
