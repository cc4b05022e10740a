"""Testing code that uses connections against a bad network: ``pytest examples/test_network.py``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from asyncwebsockets import (
    ConnectionClosedError,
    Websocket,
    open_websocket_client,
    open_websocket_server,
)
from asyncwebsockets.testing import Faults, FaultyStream, check_transport, memory_pair

pytestmark = pytest.mark.anyio


async def ask(websocket: Websocket, question: str) -> str | None:
    """The code under test: the answer, None if the connection was lost."""
    try:
        await websocket.send(question)
        return await websocket.receive_text()
    except ConnectionClosedError:
        return None


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[Websocket, FaultyStream]]:
    """Give a client, with a server that echoes, and the stream between them."""
    near, far = memory_pair()
    network = FaultyStream(near)

    async def serve() -> None:
        async with open_websocket_server(far) as websocket:
            async for text in websocket.iter_text():
                await websocket.send(text)

    async def serve_quietly() -> None:
        try:
            await serve()
        except ConnectionClosedError:
            print("the server lost the connection, too")

    async with anyio.create_task_group() as tg:
        tg.start_soon(serve_quietly)
        async with open_websocket_client(network, "localhost", "/") as websocket:
            yield websocket, network


async def test_a_byte_at_a_time() -> None:
    async with connection() as (websocket, network):
        network.receiving = network.sending = Faults(split=1)
        assert await ask(websocket, "well?") == "well?"


async def test_a_reset_in_the_middle_of_the_question() -> None:
    async with connection() as (websocket, network):
        network.sending = Faults(reset_after=5)
        assert await ask(websocket, "well?") is None


async def test_an_end_in_the_middle_of_the_answer() -> None:
    async with connection() as (websocket, network):
        network.receiving = Faults(end_after=3)
        assert await ask(websocket, "well?") is None


async def test_the_network_is_a_good_stream_otherwise() -> None:
    async def make() -> tuple[FaultyStream, FaultyStream]:
        near, far = memory_pair()
        return FaultyStream(near), FaultyStream(far)

    await check_transport(make, capacity=200_000)
