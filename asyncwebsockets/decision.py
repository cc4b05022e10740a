"""What a filter's result means, as an event."""

from __future__ import annotations

from .events import AcceptConnection, Reject, RejectConnection, Request

__all__ = ["decide"]


def decide(result: object, request: Request) -> AcceptConnection | Reject:
    """Return the event that a filter's result stands for.

    Args:
        result: True accepts with the first offered subprotocol, a ``str`` with that one, an
            ``AcceptConnection`` as it says; False and None reject with 403, a
            ``RejectConnection`` and a ``Reject`` as they say.
        request: the request that was asked about.

    Raises:
        TypeError: the result is none of these.
        ValueError: the subprotocol was not offered by the client (RFC 6455 section 4.2.2).
    """
    match result:
        case True:
            return AcceptConnection(subprotocol=next(iter(request.subprotocols), None))
        case False | None:
            return Reject(403)
        case Reject():
            return result
        case RejectConnection():
            return Reject(result.status_code, result.headers)
        case str():
            accept = AcceptConnection(subprotocol=result)
        case AcceptConnection():
            accept = result
        case _:
            raise TypeError(
                "expected a filter to return a bool, None, a str, AcceptConnection, "
                f"RejectConnection or Reject, got {result!r}"
            )
    if accept.subprotocol is not None and accept.subprotocol not in request.subprotocols:
        raise ValueError(
            f"expected one of the offered subprotocols {request.subprotocols}, "
            f"got {accept.subprotocol!r}"
        )
    return accept
