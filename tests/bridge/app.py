"""The application that the servers run."""

from __future__ import annotations

from asgi_bridge import WebsocketApp

from .handlers import filter, handle

application = WebsocketApp(handle, filter)
