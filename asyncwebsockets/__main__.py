"""The command ``python -m asyncwebsockets``, or ``asyncwebsockets``."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import sys
from typing import TYPE_CHECKING, Any

from ._cli_connect import connect
from ._cli_serve import serve
from ._descriptors import open_missing
from ._printable import PrintableFormatter
from .settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_INTERRUPTED = 130

_CONNECT = """\
With a terminal on both ends, lines are edited, and what comes is shown above; /help says more.
Otherwise, each line of standard input is sent as a message, and each message that comes is
written to standard output with a line break behind it. Messages with line breaks in them keep
them: use --null to tell them apart. Lines that are not UTF-8 are sent as binary messages.

What comes from the peer never reaches a terminal as a command: characters that are not printable
are shown escaped there, binary messages in hexadecimal. A pipe or file gets messages unchanged.

exit status:
  0    the connection was closed with 1000, 1001 or without a code, by either side, or nobody
       reads the output any more
  1    the connection was lost, failed, or closed with another code, or the input could not be
       read or the output not written
  2    the command line is wrong
  3    there was no connection: name, TCP, TLS, or the handshake, whose answer is shown
  130  Ctrl-C; 143 SIGTERM
"""

_SERVE = """\
echo       sends every message back
broadcast  sends every message to all other connections; who falls 256 KiB behind is closed
           with 1008
exec       runs the command for each connection: each message is a line of its standard input,
           each line of its standard output a message. A message with line breaks in it arrives as
           several lines, unless --null is given. The end of the connection ends the input, and
           two seconds later the command; the end of the command closes the connection, with 1000
           after status 0 and with 1011 otherwise. Its environment has WEBSOCKET_PATH,
           WEBSOCKET_QUERY, WEBSOCKET_SUBPROTOCOL and WEBSOCKET_CLIENT.

Pages in a browser may connect only from the origins given; other clients always may.
SIGTERM, SIGINT and, unless it is ignored, SIGHUP drain: connections are closed with 1012, and
their handlers have --drain-timeout to end. A second one does not wait, and kills the commands.

exit status:
  0    it was told to end by one of these signals
  1    it could not start
  2    the command line is wrong
"""


class _Version(argparse.Action):
    """Looks for the version only where it is asked for, which takes its time."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> None:
        from importlib.metadata import version

        print(f"asyncwebsockets {version('asyncwebsockets')}")  # noqa: T201
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asyncwebsockets", description="WebSockets from the command line."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show it and leave")
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument(
        "--subprotocol",
        action="append",
        default=[],
        metavar="NAME",
        help="in order of preference; may be given several times",
    )
    both.add_argument(
        "-0", "--null", action="store_true", help="end messages with a zero byte, not a line break"
    )
    both.add_argument(
        "-b", "--binary", action="store_true", help="send what is read as binary messages"
    )
    both.add_argument(
        "--max-size",
        type=_natural,
        default=Settings().max_message_size,
        metavar="BYTES",
        help="of a message; %(default)s by default, 0 for any size",
    )
    both.add_argument("--compress", action="store_true", help="agree on permessage-deflate")
    both.add_argument(
        "--backend",
        choices=["asyncio", "uvloop", "trio"],
        default="asyncio",
        help="the event loop; %(default)s by default",
    )
    commands = parser.add_subparsers(dest="command_name", required=True, metavar="COMMAND")
    _add_connect(commands, both)
    _add_serve(commands, both)
    return parser


def _add_connect(commands: Any, both: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "connect",
        parents=[both],
        help="connect to a URL, interactively or in a script",
        description="Connect to a URL, interactively or in a script.",
        epilog=_CONNECT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="ws://... or wss://...")
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a header field of the handshake; may be given several times",
    )
    parser.add_argument("--origin", help="the Origin of the handshake")
    parser.add_argument("--uds", metavar="PATH", help="a Unix socket to connect to")
    parser.add_argument(
        "-k", "--insecure", action="store_true", help="do not verify the server's certificate"
    )
    parser.add_argument("--ca-file", metavar="FILE", help="authorities to trust (PEM)")
    parser.add_argument("--cert-file", metavar="FILE", help="a certificate of the client (PEM)")
    parser.add_argument("--key-file", metavar="FILE", help="its private key, if not in that file")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=Settings().open_timeout,
        metavar="SECONDS",
        help="for opening the connection; %(default)s by default",
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=1,
        metavar="SECONDS",
        help="close when nothing has come for so long after the end of standard input; "
        "%(default)s by default, inf for waiting until the peer closes",
    )
    parser.add_argument(
        "--count", type=_natural, default=0, metavar="N", help="close after N messages have come"
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="show the handshake, and the end if not interrupted",
    )
    parser.set_defaults(run=connect)


def _add_serve(commands: Any, both: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "serve",
        parents=[both],
        help="serve an echo, a broadcast, or a command",
        description="Serve an echo, a broadcast, or a command. Options go before exec.",
        epilog=_SERVE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["echo", "broadcast", "exec"])
    command = parser.add_argument("command", nargs=argparse.REMAINDER, help="for exec")
    # Else it is named as missing where nothing is said of what to serve.
    command.required = False
    parser.add_argument("--host", default="127.0.0.1", help="%(default)s by default")
    parser.add_argument(
        "--port", type=_port, default=8765, help="%(default)s by default; 0 for any that is free"
    )
    parser.add_argument("--uds", metavar="PATH", help="a Unix socket, in place of host and port")
    parser.add_argument("--cert-file", metavar="FILE", help="the certificate chain (PEM), for wss")
    parser.add_argument("--key-file", metavar="FILE", help="its private key, if not in that file")
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        help="whose pages may connect, * for all; may be given several times",
    )
    parser.add_argument(
        "--max-connections", type=_natural, metavar="N", help="beyond it, clients get status 503"
    )
    parser.add_argument(
        "--drain-timeout",
        type=_seconds,
        default=Settings().drain_timeout,
        metavar="SECONDS",
        help="%(default)s by default",
    )
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], default="info"
    )
    parser.set_defaults(run=serve)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"expected seconds of 0 or more, got {text!r}")
    return seconds


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    options = parser.parse_args(arguments)
    if options.command_name != "serve":
        return options
    if options.what == "exec":
        if not options.command:
            parser.error("expected a command behind exec")
        return options
    if options.command:
        # Only exec has to leave what is behind it to the command.
        what, behind = options.what, options.command
        before = arguments[: -len(behind) - 1]
        options = parser.parse_args([*before, *behind, what])
        if options.command:
            parser.error(f"expected only options behind {what}, got {' '.join(behind)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    open_missing()
    parser = _parser()
    options = _parse(parser, sys.argv[1:] if arguments is None else list(arguments))
    name = options.backend
    if name != "asyncio" and importlib.util.find_spec(name) is None:
        parser.error(f"expected the package {name} for --backend={name}, it is missing")
    if options.key_file is not None and options.cert_file is None:
        parser.error("expected --cert-file with --key-file")
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
    level = getattr(options, "log_level", "warning")
    logging.basicConfig(level=level.upper(), handlers=[handler])
    backend = ("trio", {}) if name == "trio" else ("asyncio", {"use_uvloop": name == "uvloop"})
    try:
        status: int = options.run(options, backend)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
