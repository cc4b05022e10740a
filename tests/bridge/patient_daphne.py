"""Daphne, without Autobahn's second: a client that has not read all by then is cut off.

Daphne has no option for it, and how much a client reads in a second is for no test to say.
"""

from __future__ import annotations

from typing import Any

import daphne.server
from daphne.cli import CommandLineInterface
from daphne.ws_protocol import WebSocketFactory


class PatientFactory(WebSocketFactory):  # type: ignore[misc]
    def setProtocolOptions(self, **options: Any) -> None:
        super().setProtocolOptions(closeHandshakeTimeout=60, **options)


daphne.server.WebSocketFactory = PatientFactory
CommandLineInterface.entrypoint()
