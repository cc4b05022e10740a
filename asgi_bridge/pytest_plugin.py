"""Fixtures for pytest; enable them with ``pytest_plugins = ["asgi_bridge.pytest_plugin"]``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from .inprocess import open_websocket_app

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from asyncwebsockets import Websocket

    from .lifespan import Application

__all__ = ["asgi_app", "websocket_connect"]


@pytest.fixture
def asgi_app() -> Application:
    """Return the application that is tested; to be overridden."""
    raise pytest.UsageError("expected a fixture asgi_app that returns your ASGI application")


@pytest.fixture
def websocket_connect(
    asgi_app: Application,
) -> Callable[..., AbstractAsyncContextManager[Websocket]]:
    """Return :func:`open_websocket_app`, bound to the application of the fixture `asgi_app`.

    ``async with websocket_connect("/chat") as websocket: ...``
    """
    return functools.partial(open_websocket_app, asgi_app)
