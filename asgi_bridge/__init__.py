"""ASGI on both sides of :mod:`asyncwebsockets`.

:class:`WebsocketApp` makes an ASGI application of a handler, for Starlette, FastAPI or an ASGI
server as it is.
"""

from __future__ import annotations

from .endpoint import AsgiChannel, WebsocketApp
from .scope import AsgiRequest

__all__ = ["AsgiChannel", "AsgiRequest", "WebsocketApp"]
