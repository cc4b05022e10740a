"""Fixtures for the tests of asgi_bridge."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from .servers import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The servers, each started when it is first asked for."""
    with ExitStack() as stack:
        yield Fleet(stack, tmp_path_factory.mktemp("logs"))
