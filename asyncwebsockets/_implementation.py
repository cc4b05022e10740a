"""Which implementation runs for every message: the one in C, or the one in Python."""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["IMPLEMENTATION"]


def _choose() -> Literal["native", "pure"]:
    """Return "native" where that was built and the environment does not forbid it."""
    choice = os.environ.get("ASYNCWEBSOCKETS_CODEC", "")
    if choice not in ("", "native", "pure"):
        raise ImportError(f"ASYNCWEBSOCKETS_CODEC: expected native or pure, got {choice!r}")
    if choice == "pure":
        return "pure"
    try:
        from . import _native, _nativeloop  # noqa: F401
    except ImportError as exc:
        if choice == "native":
            raise ImportError(
                "ASYNCWEBSOCKETS_CODEC=native, but what is in C was not built: "
                "with a C compiler, install anew with ASYNCWEBSOCKETS_NATIVE=1"
            ) from exc
        return "pure"
    return "native"


#: The codec that connections get: "native", in C, where it was built, or else "pure". The
#: environment variable ``ASYNCWEBSOCKETS_CODEC`` forces either.
IMPLEMENTATION: Literal["native", "pure"] = _choose()
