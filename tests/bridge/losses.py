"""What each carrier does otherwise than TCP, exactly: a server's fix fails a test.

A loss names what is noted in place of what a scenario expects: ``client.*`` is what the client
saw, ``handler.*`` what the handler had noted.
"""

from __future__ import annotations

from typing import Any

#: Nothing is noted under that name.
NOTHING = "nothing"

Losses = dict[str, dict[str, Any]]

# Every end is 1006 for the application, and so an error: hypercorn does not say which it was.
_HYPERCORN: Losses = {
    "the_client_closes_with_a_reason": {
        "handler.code": 1006,
        "handler.reason": None,
        "handler.raised": "ConnectionClosedError",
    },
    "messages_may_be_empty": {"handler.code": 1006, "handler.raised": "ConnectionClosedError"},
    "the_client_closes_with_1000": {"handler.code": 1006},
    "the_client_goes_away": {"handler.code": 1006},
    "the_client_closes_without_a_code": {"handler.code": 1006},
    "the_client_breaks_the_protocol": {"client.close": "none", "handler.code": 1006},
    "the_client_sends_bad_utf8": {"client.close": "none", "handler.code": 1006},
    "the_client_sends_too_much": {"handler.code": 1006},
    # The application's own close is 1000, whatever its code.
    "the_handler_closes_with_a_reason": {"handler.code": 1000, "handler.reason": None},
    "the_handler_sends_to_one_who_left": {"handler.code": 1006},
    "the_handler_describes_the_request": {"handler.code": 1006},
    "the_filter_chooses_a_subprotocol": {"handler.code": 1006},
    "the_filter_adds_header_fields": {"handler.code": 1006},
    "the_client_sends_before_it_is_accepted": {
        "client.status": 400,
        "client.echo": NOTHING,
        "client.close": NOTHING,
        "handler.code": NOTHING,
        "handler.reason": NOTHING,
    },
}

# What the server failed the connection for looks like a Close of the peer.
_UVICORN: Losses = {
    "the_client_ends_tcp": {"handler.code": 1005, "handler.raised": "ConnectionClosedOK"},
    "the_client_resets_tcp": {"handler.code": 1005, "handler.raised": "ConnectionClosedOK"},
    "the_client_breaks_the_protocol": {"handler.raised": "ConnectionClosedOK"},
    "the_client_sends_bad_utf8": {"handler.raised": "ConnectionClosedOK"},
    "the_client_sends_too_much": {"handler.raised": "ConnectionClosedOK"},
    "the_client_sends_before_it_is_accepted": {"client.echo": "late"},
}

# It has no denial responses.
_ALWAYS_403: Losses = {
    "the_filter_rejects_with_a_status": {"client.status": 403, "client.fields": []},
    "the_filter_rejects_with_a_body": {
        "client.status": 403,
        "client.fields": [],
        "client.body": "",
    },
    "the_filter_rejects_with_pieces": {
        "client.status": 403,
        "client.fields": [],
        "client.body": "",
    },
    "the_filter_rejects_without_a_body": {"client.status": 403},
}

# ASGI has one code for both: what the server failed it for, and what the peer closed it with.
_FAILED_BY_THE_SERVER: Losses = {
    "the_client_breaks_the_protocol": {"handler.raised": "ConnectionClosedOK"},
    "the_client_sends_bad_utf8": {"handler.raised": "ConnectionClosedOK"},
    "the_client_sends_too_much": {"handler.raised": "ConnectionClosedOK"},
}
_NO_ADDRESSES = {"client.addresses": ["NoneType", "NoneType"]}

TCP = "serve on TCP"
UNIX = "serve on a Unix socket"
MEMORY = "open_websocket_server on a pair in memory"
IN_PROCESS = "WebsocketApp in open_websocket_app"
HOSTED = "WebsocketApp in serve_app"

#: By what carries the connection: our own, then the servers.
LOSSES: dict[str, Losses] = {
    TCP: {},
    UNIX: {"the_handler_describes_the_request": {"client.addresses": ["str", "NoneType"]}},
    MEMORY: {"the_handler_describes_the_request": _NO_ADDRESSES},
    IN_PROCESS: {
        **_FAILED_BY_THE_SERVER,
        "the_handler_describes_the_request": _NO_ADDRESSES,
    },
    HOSTED: _FAILED_BY_THE_SERVER,
    "hypercorn-asyncio": _HYPERCORN,
    "hypercorn-uvloop": _HYPERCORN,
    "hypercorn-trio": _HYPERCORN,
    "uvicorn-websockets-sansio": _UVICORN,
    "uvicorn-wsproto": {
        **_UVICORN,
        "the_client_breaks_the_protocol": {
            "client.close": "none",
            "handler.raised": "ConnectionClosedOK",
        },
        "the_client_sends_bad_utf8": {
            "client.close": "none",
            "handler.raised": "ConnectionClosedOK",
        },
    },
    "daphne": {
        "the_client_closes_with_a_reason": {"handler.reason": ""},
        "messages_may_be_empty": {"client.echoes": ["not empty"]},
        "the_client_goes_away": {"client.close": 1000},
        "the_client_closes_without_a_code": {"client.close": 1000},
        "the_client_breaks_the_protocol": {"client.close": "none", "handler.code": 1006},
        "the_client_sends_bad_utf8": {"client.close": "none", "handler.code": 1006},
        "the_client_sends_too_much": {"handler.code": 1006},
        "the_handler_closes_with_a_reason": {"client.reason": "", "handler.reason": ""},
        "the_handler_closes_by_default": {"client.reason": ""},
        "the_handler_describes_the_request": {"client.fields": [["x-a", "1,2"], ["x-b", "é"]]},
        "the_filter_adds_header_fields": {"client.fields": []},
        **_ALWAYS_403,
        "the_client_sends_before_it_is_accepted": {"client.echo": "late"},
    },
    "granian": {
        "the_client_closes_with_a_reason": {"handler.reason": ""},
        # It tells only those it has accepted.
        "the_client_leaves_before_it_is_accepted": {"handler.filter": "timed out"},
        "the_client_ends_tcp": {"handler.code": 1005, "handler.raised": "ConnectionClosedOK"},
        "the_client_resets_tcp": {"handler.code": 1005, "handler.raised": "ConnectionClosedOK"},
        "the_client_breaks_the_protocol": {
            "client.close": 1005,
            "handler.code": 1005,
            "handler.raised": "ConnectionClosedOK",
        },
        "the_client_sends_bad_utf8": {
            "client.close": 1005,
            "handler.code": 1005,
            "handler.raised": "ConnectionClosedOK",
        },
        "the_client_sends_too_much": {
            "handler.code": 1005,
            "handler.raised": "ConnectionClosedOK",
        },
        "the_handler_closes_with_a_reason": {"handler.code": 1005, "handler.reason": None},
        "the_handler_closes_by_default": {"handler.code": 1005},
        "the_handler_uses_what_it_has_closed": {"handler.code": 1005},
        "the_handler_describes_the_request": {
            "client.fields": [["x-a", "1"], ["x-a", "2"], ["x-b", "é"]]
        },
        "the_filter_adds_header_fields": {"client.fields": []},
        **_ALWAYS_403,
        "the_filter_chooses_what_was_not_offered": {"client.status": 403},
        "the_filter_raises": {"client.status": 403},
    },
    "anycorn": {
        "the_client_closes_with_a_reason": {"handler.reason": ""},
        "the_client_breaks_the_protocol": {
            "client.close": "none",
            "handler.raised": "ConnectionClosedOK",
        },
        "the_client_sends_bad_utf8": {
            "client.close": "none",
            "handler.raised": "ConnectionClosedOK",
        },
        "the_client_sends_too_much": {"handler.raised": "ConnectionClosedOK"},
        "the_handler_closes_with_a_reason": {"handler.reason": ""},
    },
}

# What both sides see when their server is told to end (SIGTERM): how the client's connection
# ended, and the handler's note. Where that is decided by which process is faster, all there is.
_CANCELLED = [{"client.close": 1001, "handler.code": None, "handler.raised": "cancellation"}]
_ENDED_BY_THE_SERVER = [
    {"client.close": 1012, "handler.code": 1012, "handler.raised": "ConnectionClosedOK"}
]
_CUT = [{"client.close": "none"}]

#: By server, and by what the handler does meanwhile.
ENDINGS: dict[str, dict[str, list[dict[str, Any]]]] = {
    **{
        name: {"receives": _CANCELLED, "ignores": _CANCELLED}
        for name in ("hypercorn-asyncio", "hypercorn-uvloop", "hypercorn-trio", "anycorn")
    },
    **{
        name: {
            "receives": _ENDED_BY_THE_SERVER,
            "ignores": [
                {"client.close": 1012, "handler.code": None, "handler.raised": "cancellation"}
            ],
        }
        for name in ("uvicorn-websockets-sansio", "uvicorn-wsproto", "asgi-bridge")
    },
    "daphne": {"receives": _CUT, "ignores": _CUT},
    "granian": {
        "receives": [
            *_CUT,
            {"client.close": "none", "handler.code": 1005, "handler.raised": "ConnectionClosedOK"},
        ],
        "ignores": _CUT,
    },
}
