"""Writes the table of what servers lose: ``python -m tests.bridge.table``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from .losses import LOSSES, NOTHING
from .scenarios import SCENARIOS
from .servers import SERVERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "asgi-servers.md"

HEAD = """\
# What ASGI servers lose

Written by `python -m tests.bridge.table` from what the tests assert, exactly: the same handlers
and filters run on a bare socket and, mounted with `WebsocketApp`, under each server. An empty
cell is the same as on a socket. What differs is given as what the client saw (`client`) or what
the handler saw (`handler`); an end with code 1006 is a `ConnectionClosedError` for it.
"""


def table() -> str:
    columns: list[tuple[list[str], dict[str, Any]]] = []
    for server in SERVERS:
        losses = LOSSES[server.name]
        for names, other in columns:
            if other == losses:
                names.append(server.name)
                break
        else:
            columns.append(([server.name], losses))
    packages = sorted({server.name.partition("-")[0] for server in SERVERS})
    lines = [
        HEAD,
        f"Versions: {', '.join(f'{package} {version(package)}' for package in packages)}.",
        "",
        f"| | {' | '.join(', '.join(names) for names, _ in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for scenario in SCENARIOS:
        cells = [cell(losses.get(scenario.name, {})) for _, losses in columns]
        lines.append(f"| {scenario.name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(losses: dict[str, Any]) -> str:
    return "; ".join(
        f"{name.replace('.', ' ')} {value if value == NOTHING else repr(value)}"
        for name, value in losses.items()
    ).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(table())
