"""The load tests, each for a moment: `make load` and `make soak` run them at their size."""

from __future__ import annotations

import sys
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("what a process holds is read from Linux's /proc", allow_module_level=True)

from .load import scenarios
from .load.measure import growth


@pytest.fixture
def backend(anyio_backend: Any) -> str:
    """The name of the event loop, which the server's process runs as well."""
    name, options = anyio_backend
    return "uvloop" if options.get("use_uvloop") else name


@pytest.mark.anyio
async def test_all_hear_what_is_sent_to_many(backend: str) -> None:
    await scenarios.load(backend, connections=200, seconds=1)


@pytest.mark.anyio
async def test_a_full_server_answers_503_and_serves_the_open_ones(backend: str) -> None:
    await scenarios.overload(backend, connections=20, seconds=0.3)


@pytest.mark.anyio
async def test_a_drain_under_load_loses_nothing_that_was_acknowledged(backend: str) -> None:
    await scenarios.drain(backend, connections=20, seconds=0.3)


@pytest.mark.anyio
async def test_churn_leaves_no_connection_descriptor_or_task(backend: str) -> None:
    await scenarios.soak(backend, workers=5, rounds=4, seconds=0.2, grows=True)


def test_what_grows_is_found() -> None:
    flat = {"rss": 50 * 2.0**20, "descriptors": 10.0, "tasks": 4.0}
    warming = {**flat, "rss": 30 * 2.0**20, "descriptors": 8.0}
    assert growth([warming, *[flat] * 8]) == []
    assert growth([*[flat] * 8, {**flat, "tasks": 5}]) == ["tasks from 4 to 5"]
    leaking = [{**flat, "rss": flat["rss"] * (1 + step / 100)} for step in range(12)]
    (found,) = growth(leaking)
    assert found.startswith("resident memory")
