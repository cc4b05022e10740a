"""Who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import asyncwebsockets

PACKAGE = Path(asyncwebsockets.__file__).parent

# From the bottom to the top: a module imports only from rows above its own.
LAYERS = [
    ["errors"],
    ["events"],
    ["settings"],
    ["_grammar", "_supervisor", "_url"],
    ["pace"],
    ["deflate"],
    ["codec"],
    ["handshake"],
    ["decision", "origin"],
    ["transport"],
    ["channel"],
    ["websocket"],
    ["_scope"],
    ["client", "server"],
    ["__init__"],
]
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Return the module's own siblings that it imports, those for types included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_from_rows_above_its_own(path: Path) -> None:
    assert path.stem in ROW, "a new module needs its place in LAYERS"
    for name in imports(path):
        assert ROW[name] < ROW[path.stem], f"{path.stem} imports {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_no_module_knows_a_backend_by_name(path: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    assert not names & {"asyncio", "trio", "uvloop"}


def test_every_public_name_is_exported() -> None:
    assert sorted(asyncwebsockets.__all__) == asyncwebsockets.__all__
    for name in asyncwebsockets.__all__:
        assert getattr(asyncwebsockets, name).__module__
