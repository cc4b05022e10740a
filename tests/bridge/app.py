"""The applications that the servers run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount

from asgi_bridge import WebsocketApp
from asyncwebsockets import Settings

from .handlers import filter, handle

if TYPE_CHECKING:
    from starlette.middleware.base import RequestResponseEndpoint
    from starlette.requests import Request
    from starlette.responses import Response

#: The environment has the seconds of `open_timeout` under that name.
OPEN_TIMEOUT = "OPEN_TIMEOUT"

settings = Settings(open_timeout=float(os.environ.get(OPEN_TIMEOUT, Settings().open_timeout or 0)))
application = WebsocketApp(handle, filter, settings=settings)


async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
    raise AssertionError("this is for HTTP only")


#: The same at ``/mounted``, behind middleware.
layered = Starlette(
    routes=[Mount("/mounted", application)],
    middleware=[
        Middleware(BaseHTTPMiddleware, dispatch=dispatch),
        Middleware(CORSMiddleware, allow_origins=["https://example.com"]),
    ],
)
