"""Telling of connections: to the log, and to the program's observer."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, ParamSpec

from ._printable import printable
from .observation import ConnectionRecord, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from .events import Address, Request
    from .observation import Connection, Observer

__all__ = ["UNOBSERVED", "activated", "describe", "observe", "report", "tell"]

P = ParamSpec("P")

logger: logging.Logger = logging.getLogger("asyncwebsockets")

# Of its own, so that a program can have these records and nothing else.
_ends: logging.Logger = logging.getLogger("asyncwebsockets.connections")

# Every connection without an observer holds it.
_NOTHING: AbstractContextManager[object] = nullcontext()

_ENDED_BY = {"local": "closed by this side", "remote": "closed by the peer", None: "lost"}

#: What is told of connections without an observer.
UNOBSERVED: Observation = Observation()


def observe(
    observer: Observer | None, role: Literal["client", "server"], request: Request
) -> Observation:
    """Return what is to be told of a handshake."""
    if observer is None:
        return UNOBSERVED
    try:
        return observer(role, request) or UNOBSERVED
    except Exception:
        logger.exception("an observer failed")
        return UNOBSERVED


def tell(method: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a method of an observation; what it raises is no business of the connection's."""
    try:
        method(*args, **kwargs)
    except Exception:
        logger.exception("an observer failed")


def activated(observation: Observation) -> AbstractContextManager[object]:
    """Return what is to be entered around the user's code for a connection."""
    return _NOTHING if observation is UNOBSERVED else _activated(observation)


@contextmanager
def _activated(observation: Observation) -> Generator[None, None, None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(observation.activate())
        except Exception:
            logger.exception("an observer failed")
        yield


def report(
    connection: Connection,
    role: Literal["client", "server"],
    closed_by: Literal["local", "remote"] | None,
    clean: bool,
    observation: Observation,
) -> None:
    """Tell that a connection has ended, if anybody wants to know."""
    logged = _ends.isEnabledFor(logging.DEBUG)
    if not logged and observation is UNOBSERVED:
        return
    code, reason = connection.close_code, connection.close_reason
    record = ConnectionRecord(
        role=role,
        path=connection.request.path,
        subprotocol=connection.subprotocol,
        local_address=connection.local_address,
        remote_address=connection.remote_address,
        close_code=1006 if code is None else code,
        close_reason=reason or "",
        closed_by=closed_by,
        clean=clean,
        statistics=connection.statistics,
    )
    if logged:
        _log(record)
    tell(observation.closed, record)


def _log(record: ConnectionRecord) -> None:
    # What came from the peer is fit to be shown here; the record itself has it as it came.
    fields = {
        **vars(record),
        **vars(record.statistics),
        "path": printable(record.path),
        "subprotocol": record.subprotocol and printable(record.subprotocol),
        "local_address": describe(record.local_address),
        "remote_address": describe(record.remote_address),
        "close_reason": printable(record.close_reason),
    }
    del fields["statistics"]
    _ends.debug(
        "%s %s %s: %s, %d%s; %.3f s, received %d bytes, %d messages; sent %d bytes, %d messages",
        "from" if record.role == "server" else "to",
        fields["remote_address"],
        fields["path"],
        _ENDED_BY[record.closed_by],
        record.close_code,
        f" {fields['close_reason']}" if record.close_reason else "",
        record.statistics.duration,
        record.statistics.bytes_received,
        record.statistics.messages_received,
        record.statistics.bytes_sent,
        record.statistics.messages_sent,
        extra=fields,
    )


def describe(address: Address) -> str:
    """Return an address as it is written: ``127.0.0.1:80``, ``[::1]:80``, a path, or ``-``."""
    if isinstance(address, tuple):
        host, port = address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return printable(address) if address else "-"
