"""Who may know whom."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import asgi_bridge
import asyncwebsockets

if TYPE_CHECKING:
    from types import ModuleType

# From the bottom to the top: a module imports only from rows above its own.
LAYERS = {
    asyncwebsockets: [
        ["errors"],
        ["_certificates", "_descriptors", "_printable", "events"],
        ["observation"],
        ["_observing", "opentelemetry", "settings"],
        ["_native", "_nativeloop"],
        ["_implementation"],
        ["_bell", "_grammar", "_loop", "_readers", "_supervisor", "_url"],
        ["_cookies", "_redirects", "pace"],
        ["deflate"],
        ["codec"],
        ["handshake"],
        ["decision", "origin"],
        ["transport"],
        ["_tls"],
        ["_pipe"],
        ["_sockets"],
        ["_lane", "_proxy", "_shared", "_trace", "testing"],
        ["channel"],
        ["_front"],
        ["websocket"],
        ["_broadcast", "_scope"],
        ["_dial", "server"],
        ["_reconnect", "client"],
        ["_cli_connect", "_cli_serve", "sync"],
        ["__init__", "__main__"],
    ],
    asgi_bridge: [
        ["messages"],
        ["lifespan", "scope", "state"],
        ["endpoint", "host"],
        ["inprocess"],
        ["__init__", "__main__", "pytest_plugin"],
    ],
}
ROW = {
    (package.__name__, name): row
    for package, layers in LAYERS.items()
    for row, names in enumerate(layers)
    for name in names
}
MODULES = sorted(path for package in LAYERS for path in Path(package.__path__[0]).glob("*.py"))

every_module = pytest.mark.parametrize(
    "path", MODULES, ids=[f"{path.parent.name}.{path.stem}" for path in MODULES]
)


def imports(path: Path) -> set[str]:
    """Return the module's own siblings that it imports, those for types included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return found


def foreign(path: Path) -> set[str]:
    """Return the dotted names of all else that it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@every_module
def test_a_module_imports_only_from_rows_above_its_own(path: Path) -> None:
    package = path.parent.name
    assert (package, path.stem) in ROW, "a new module needs its place in LAYERS"
    for name in imports(path):
        assert ROW[package, name] < ROW[package, path.stem], f"{path.stem} imports {name}"


@every_module
def test_only_two_modules_know_a_backend_by_name(path: Path) -> None:
    if path.stem in ("_loop", "_sockets"):
        return
    names = {name.partition(".")[0] for name in foreign(path)}
    assert not names & {"asyncio", "trio", "uvloop"}


@every_module
def test_the_bridge_uses_public_names_only_and_the_library_none_of_it(path: Path) -> None:
    for name in foreign(path):
        package, *parts = name.split(".")
        if path.parent.name == "asyncwebsockets":
            assert package != "asgi_bridge"
        elif package == "asyncwebsockets":
            assert not any(part.startswith("_") for part in parts), name
            module = sys.modules[name.rpartition(".")[0]]
            assert parts[-1] in module.__all__, name


@pytest.mark.parametrize("package", LAYERS, ids=lambda package: package.__name__)
def test_every_public_name_is_exported(package: ModuleType) -> None:
    assert sorted(package.__all__) == package.__all__
    for name in package.__all__:
        assert getattr(package, name).__module__
