"""A connection's scope, and the request it stands for.

The sections "HTTP" and "WebSocket" of the ASGI specification, HTTP & WebSocket message format 2.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from asyncwebsockets import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncwebsockets.events import Address

    from .messages import Scope

__all__ = ["AsgiRequest", "request_from_scope", "scope_from_request", "takes_denials"]

# What a path may have besides letters, digits and "-._~" (RFC 3986 section 3.3).
_PATH_SAFE = "/!$&'()*+,;=:@"

_SLASH = re.compile("/|%2F", re.IGNORECASE)

# Those of the handshake, which wsproto's Request has in fields of their own.
_OWN_FIELDS = frozenset(
    (
        b"connection",
        b"host",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"upgrade",
    )
)


@dataclass(frozen=True)
class AsgiRequest(Request):
    """A request that came through an ASGI server.

    Its target is what is left of the path below the application's mount, with the query.

    Attributes:
        scope: the connection's scope, with all that server, middleware and routers have put
            there (``state``, ``path_params``, ``user``, ...).
    """

    scope: Scope = field(default_factory=dict, repr=False)


def request_from_scope(scope: Scope) -> AsgiRequest:
    """Return the request of a scope of type ``websocket`` or ``http``.

    What servers leave out or write in a way of their own is put right: ports that are strings,
    header fields that are lists, subprotocols in lines of their own, a path that middleware has
    changed without changing ``raw_path``.
    """
    headers = [(bytes(name), bytes(value)) for name, value in scope.get("headers") or ()]
    server = _address(scope.get("server"))
    http_version = scope.get("http_version") or "1.1"
    query = scope.get("query_string") or b""
    target = _path_below_root(scope) + (f"?{query.decode('latin-1')}" if query else "")
    host = next((value for name, value in headers if name.lower() == b"host"), None)
    method = scope.get("method")
    if method is None:
        # RFC 8441 section 4.
        method = "CONNECT" if http_version.startswith(("2", "3")) else "GET"
    return AsgiRequest(
        host=host.decode("latin-1") if host is not None else _as_host(server),
        target=target,
        extensions=_items(headers, b"sec-websocket-extensions"),
        extra_headers=[
            (name.lower(), value) for name, value in headers if name.lower() not in _OWN_FIELDS
        ],
        # Servers leave out one or the other, and not each takes more than one line.
        subprotocols=_items(headers, b"sec-websocket-protocol")
        or [name.strip() for name in scope.get("subprotocols") or () if name.strip()],
        method=method,
        headers=headers,
        local_address=server,
        remote_address=_address(scope.get("client")),
        secure=scope.get("scheme") in ("wss", "https"),
        http_version=http_version,
        scope=scope,
    )


def scope_from_request(
    request: Request, root_path: str = "", state: Mapping[str, Any] | None = None
) -> Scope:
    """Return the scope for an application that is to serve a request.

    Args:
        request: the client's.
        root_path: decoded, in front of the path.
        state: of the lifespan; each connection gets a shallow copy. None leaves it out.
    """
    raw_path = quote(root_path, safe=_PATH_SAFE) + request.path
    scope: Scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": request.http_version,
        "scheme": "wss" if request.secure else "ws",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii"),
        "query_string": request.query.encode("ascii"),
        "root_path": root_path,
        "headers": [(name.lower(), value) for name, value in request.headers],
        "client": _pair(request.remote_address),
        "server": _pair(request.local_address),
        "subprotocols": list(request.subprotocols),
        "extensions": {"websocket.http.response": {}},
    }
    if state is not None:
        scope["state"] = dict(state)
    return scope


def _pair(address: Address) -> tuple[str, int | None] | None:
    """Return an address as ASGI has it; a pair that can be a key, as under most servers."""
    return (address, None) if isinstance(address, str) else address


def takes_denials(scope: Scope) -> bool:
    """Whether the server takes an HTTP response in place of a connection.

    granian 2.8 says that it does, but its worker process ends when two header fields have the
    same name, it takes no second piece of a body, and its answer says that it upgrades. It is
    known by its ports, which are strings.
    """
    _, port = scope.get("server") or (None, None)
    granian = isinstance(port, str)
    return "websocket.http.response" in (scope.get("extensions") or ()) and not granian


def _address(value: Any) -> Address:
    """Return an address: ``[host, port]``, or ``[path, None]`` of a Unix socket."""
    host, port = value or ("", None)
    if not host:
        return None
    # granian has the port "0" for a Unix socket.
    if port is None or (int(port) == 0 and "/" in host):
        return str(host)
    return str(host), int(port)


def _as_host(server: Address) -> str:
    if isinstance(server, tuple):
        host, port = server
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "localhost"


def _items(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """Return the items of a list-valued field, from all its lines (RFC 9110 section 5.6.1)."""
    values = [
        value.decode("latin-1") for field_name, value in headers if field_name.lower() == name
    ]
    items = [item.strip(" \t") for value in values for item in value.split(",")]
    return [item for item in items if item]


def _path_below_root(scope: Scope) -> str:
    """Return the path below ``root_path``, percent-encoded.

    ``path`` has ``root_path`` in front, by the specification; not every server adds it.
    """
    path = scope.get("path") or "/"
    # Some in-process servers leave the query in it.
    raw = (scope.get("raw_path") or b"").decode("latin-1").partition("?")[0]
    if unquote(raw) != path:
        raw = quote(path, safe=_PATH_SAFE)
    given = scope.get("root_path") or ""
    # Some end it with a slash; others have one there that was encoded.
    for root in (given, given.rstrip("/")):
        if root and (path == root or path.startswith(f"{root}/")):
            raw = _strip(raw, root)
            break
    return raw if raw.startswith("/") else f"/{raw}"


def _strip(raw: str, root: str) -> str:
    """Take a decoded prefix off an encoded path; routers let an encoded slash follow, too."""
    for slash in _SLASH.finditer(raw):
        if unquote(raw[: slash.start()]) == root:
            return f"/{raw[slash.end() :]}"
    return "/"
