"""Writes the table of what servers lose: ``python -m tests.bridge.table``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .losses import ENDINGS, LOSSES, NOTHING
from .scenarios import SCENARIOS
from .servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PAGE = Path(__file__).resolve().parents[2] / "docs" / "asgi-servers.md"

HEAD = """\
# What ASGI servers lose

Written by `python -m tests.bridge.table` from what the tests assert, exactly: the same handlers
and filters run on what carries a connection here and, mounted with `WebsocketApp`, under each ASGI
server. An empty cell is the same as on TCP. What differs is given as what the client saw
(`client`) or what the handler saw (`handler`); an end with code 1006 is a `ConnectionClosedError`
for it. ASGI has one code for what the server failed a connection for and for a Close of the peer:
hence the 'ConnectionClosedOK'.
"""

ENDINGS_HEAD = """\
## When a server is told to end

What both sides see on SIGTERM, by what the handler does. Those that wait for handlers were told
to wait for one second, by an option of theirs: without it, uvicorn waits for ever for a handler
that does not receive. "cancellation" is that of the event loop. Where the handler is not named,
its process ended before it saw anything.
"""


def table() -> str:
    packages = sorted({server.name.partition("-")[0] for server in SERVERS})
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    scenarios = {scenario.name: scenario.name.replace("_", " ") for scenario in SCENARIOS}
    return "\n".join(
        [
            HEAD,
            f"Versions: {versions}.",
            "",
            *rows(LOSSES, scenarios, lambda lost: cell(lost or {})),
            "",
            ENDINGS_HEAD,
            *rows(
                ENDINGS,
                {"receives": "it receives", "ignores": "it waits for something else"},
                lambda notes: ", or ".join(cell(note) for note in notes),
            ),
            "",
        ]
    )


def rows(
    by_server: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, str],
    show: Callable[[Any], str],
) -> list[str]:
    """Return the lines of a table; servers that do the same share a column."""
    columns: list[tuple[list[str], Mapping[str, Any]]] = []
    for server, cells in by_server.items():
        for servers, other in columns:
            if other == cells:
                servers.append(server)
                break
        else:
            columns.append(([server], cells))
    lines = [
        f"| | {' | '.join(', '.join(servers) for servers, _ in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for key, name in names.items():
        shown = [show(cells.get(key)) for _, cells in columns]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def cell(losses: dict[str, Any]) -> str:
    return "; ".join(
        f"{name.replace('.', ' ')} {value if value == NOTHING else repr(value)}"
        for name, value in losses.items()
    ).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(table())
