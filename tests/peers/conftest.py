"""Fixtures for the tests against other implementations."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from .link import Link, Peers, running_peers
from .peer import Tls

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="session")
def peers() -> Iterator[Peers]:
    yield from running_peers()


@pytest.fixture(scope="session")
def tls() -> Tls:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Tls(
        server,
        client,
        "".join(pem.bytes().decode() for pem in certificate.cert_chain_pems),
        certificate.private_key_pem.bytes().decode(),
        authority.cert_pem.bytes().decode(),
    )


@pytest.fixture
def link(request: pytest.FixtureRequest, peers: Peers, tls: Tls) -> Link:
    """A peer in a role, as the test's parameter says."""
    kind, role = request.param
    missing = kind.missing()
    if missing is not None:
        # What a machine of a developer need not have, that of the CI must.
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    peer, portal = peers.get(kind)
    return Link(peer, role, portal, tls)
