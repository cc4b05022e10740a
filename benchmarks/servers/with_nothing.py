"""No library: one thread hands every message to all, as the floor of what that costs."""

from __future__ import annotations

import select
import socket

from ..load import Link, accept, plain
from . import options

SIZE = 128


def main(port: int) -> None:
    # What comes is counted, not looked at.
    traffic = plain(SIZE, server=True)
    links: dict[int, Link] = {}
    with (
        socket.create_server(("127.0.0.1", port), backlog=1024) as listener,
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
                    for link in links.values():
                        link.send()


if __name__ == "__main__":
    main(options().port)
