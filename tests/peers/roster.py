"""The peers there are, and which of them a test is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .with_aiohttp import Aiohttp
from .with_chromium import Chromium
from .with_httpx_ws import HttpxWs
from .with_picows import Picows
from .with_trio_websocket import TrioWebsocket
from .with_websockets import PicowsWebsockets, Websockets
from .with_ws import Ws

if TYPE_CHECKING:
    from collections.abc import Callable

    from .peer import Peer

PEERS: list[type[Peer]] = [
    Websockets,
    Aiohttp,
    Picows,
    PicowsWebsockets,
    TrioWebsocket,
    HttpxWs,
    Ws,
    Chromium,
]


def links(
    can: Callable[[type[Peer]], bool] = lambda peer: True, role: str | None = None
) -> pytest.MarkDecorator:
    """Run a test with each peer that can do what it needs, in each role or in one."""
    return pytest.mark.parametrize(
        "link",
        [
            pytest.param((peer, its_role), id=f"{peer.name}-{its_role}")
            for peer in PEERS
            if can(peer)
            for its_role in peer.roles
            if role in (None, its_role)
        ],
        indirect=True,
    )


__all__: list[Any] = ["PEERS", "links"]
