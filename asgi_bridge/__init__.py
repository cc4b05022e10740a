"""ASGI on both sides of :mod:`asyncwebsockets`.

:class:`WebsocketApp` makes an ASGI application of a handler, for Starlette, FastAPI or an ASGI
server as it is. :func:`serve_app` runs an ASGI application on the library's own sockets,
and :func:`open_websocket_app` connects to one in the same process.
"""

from __future__ import annotations

from .endpoint import AsgiChannel, WebsocketApp
from .host import ClientDisconnected, serve_app
from .inprocess import open_websocket_app
from .lifespan import LifespanFailed
from .scope import AsgiRequest

__all__ = [
    "AsgiChannel",
    "AsgiRequest",
    "ClientDisconnected",
    "LifespanFailed",
    "WebsocketApp",
    "open_websocket_app",
    "serve_app",
]
