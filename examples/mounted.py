"""A handler mounted in a Starlette application: ``hypercorn examples.mounted:app``."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from asgi_bridge import WebsocketApp
from asyncwebsockets import Websocket


async def echo(websocket: Websocket) -> None:
    async for text in websocket.iter_text():
        await websocket.send(f"{websocket.request.path}: {text}")


async def home(request: Request) -> Response:
    return PlainTextResponse("Connect to /echo/ with a WebSocket.\n")


app = Starlette(routes=[Route("/", home), Mount("/echo", WebsocketApp(echo))])
