"""What fuzzers drive: each takes bytes, and raises if something is not as it should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import codec, handshake

if TYPE_CHECKING:
    from collections.abc import Callable

#: `native` is for the codec in C under sanitizers; the others run Python.
TARGETS: dict[str, Callable[[bytes], None]] = {
    "codec": codec.check,
    "native": codec.check_native,
    "request": handshake.check_request,
    "response": handshake.check_response,
    "offer": handshake.check_offer,
}

_CORPORA = Path(__file__).parent / "corpora"


def corpus(target: str) -> Path:
    """Return the directory of a target's corpus: the two that decode frames share one."""
    return _CORPORA / ("codec" if target == "native" else target)
