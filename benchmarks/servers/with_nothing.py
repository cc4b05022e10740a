"""No library: one thread reads and sends what was made beforehand, as the floor of what that costs.

Variants: how many messages to answer at once.
"""

from __future__ import annotations

import select
import socket

from ..load import Link, accept, plain
from . import Options, options

SIZE = 128


def main(chosen: Options) -> None:
    # What comes is counted, not looked at.
    traffic = plain(SIZE, int(chosen.variant or 1), server=True)
    links: dict[int, Link] = {}
    with (
        socket.create_server(("127.0.0.1", chosen.port), backlog=1024) as listener,
        select.epoll() as poll,
    ):
        poll.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    link = accept(listener, traffic)
                    links[link.fileno()] = link
                    poll.register(link, select.EPOLLIN)
                elif links[fd].receive():
                    for link in links.values() if chosen.broadcast else (links[fd],):
                        link.send()


if __name__ == "__main__":
    main(options())
