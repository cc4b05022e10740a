"""Clients that knock at a full server, so many a second, in a process of their own.

``python -m tests.load.storm PORT SECONDS RATE`` prints how often each answer came, as JSON: a
status, or "cut". Where the server is slower than that, they wait for it.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import Counter
from contextlib import ExitStack

from ..frames import REQUEST

#: Clients at a time.
CLIENTS = 200


def main(port: int, seconds: float, rate: float) -> None:
    answers: Counter[str] = Counter()
    began = now = time.monotonic()
    while now < began + seconds:
        # At once those whose time has come.
        due = int((now - began) * rate) - answers.total()
        if due > 0:
            answers.update(knock(port, min(due, CLIENTS)))
        else:
            time.sleep(1 / rate)
        now = time.monotonic()
    print(json.dumps(answers))


def knock(port: int, count: int) -> list[str]:
    """Return what so many clients are answered."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            for _ in range(count)
        ]
        return [answer(client) for client in clients]


def answer(client: socket.socket) -> str:
    try:
        client.sendall(REQUEST)
        data = client.recv(4096)
    except ConnectionError:
        data = b""
    return data.split()[1].decode() if data else "cut"


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
