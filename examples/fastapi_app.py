"""A handler beside FastAPI's HTTP routes: ``hypercorn examples.fastapi_app:app``, or uvicorn."""

from fastapi import FastAPI

from asgi_bridge import WebsocketApp
from asyncwebsockets import Websocket, origin_filter

app = FastAPI()
visits = 0


async def count(websocket: Websocket) -> None:
    global visits
    visits += 1
    await websocket.send(f"visitor {visits}")
    async for text in websocket.iter_text():
        await websocket.send(text)


@app.get("/visits")
async def get_visits() -> dict[str, int]:
    return {"visits": visits}


app.mount("/ws", WebsocketApp(count, origin_filter()))
