"""That the reference leaves out no public name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import asgi_bridge
import asyncwebsockets

PAGES = Path(__file__).parents[1] / "docs" / "reference"

# A directive of autodoc's or of the domain of Python, and the name behind it.
DIRECTIVE = re.compile(
    r"^ *\.\. (?:auto|py:)(?!module|currentmodule)[a-z]+:: +([\w.]+)", re.MULTILINE
)

MODULES = [
    asyncwebsockets.__name__,
    asgi_bridge.__name__,
    "asgi_bridge.pytest_plugin",
    *(
        f"asyncwebsockets.{module.name}"
        for module in iter_modules(asyncwebsockets.__path__)
        if not module.name.startswith("_")
    ),
]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_its_place(module: str) -> None:
    text = "\n".join(page.read_text() for page in PAGES.glob("*.md"))
    documented = {name.rpartition(".")[2] for name in DIRECTIVE.findall(text)}
    public = set(import_module(module).__all__) - {"__version__"}
    assert public - documented == set()
