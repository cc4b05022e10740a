"""granian, which works in a process of its own; no limit to set, and no keepalive."""

from __future__ import annotations

from granian import Granian
from granian.constants import Interfaces, Loops
from granian.log import LogLevels

from . import options

if __name__ == "__main__":
    chosen = options()
    Granian(
        f"benchmarks.servers.asgi:{'mounted' if chosen.mounted else 'echo'}",
        address="127.0.0.1",
        port=chosen.port,
        interface=Interfaces.ASGI,
        loop=Loops(chosen.loop),
        log_level=LogLevels.warning,
    ).serve()
