"""``asyncwebsockets connect``: one connection, for a person at a terminal or for a script."""

from __future__ import annotations

import io
import math
import os
import signal
import ssl
import sys
import threading
import unicodedata
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING, Any

import anyio
from anyio.from_thread import start_blocking_portal
from wsproto.connection import ConnectionState

from ._certificates import load_identity, trusting
from ._descriptors import decode, read_from, records, write_to
from ._printable import hexadecimal, printable
from ._proxy import choose_proxy
from ._url import parse_url
from .client import open_websocket
from .errors import ConnectionClosed, ConnectionClosedError, HandshakeError, Rejected
from .events import Message
from .settings import Deflate, Settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ._scope import WebsocketScope
    from .websocket import Websocket

    Backend = tuple[str, dict[str, Any]]

__all__ = ["connect"]

#: Exit statuses: the connection ended with an error, there was none, the command was wrong.
ENDED_BADLY = 1
MISUSED = 2
NOT_CONNECTED = 3

_STDIN, _STDOUT = 0, 1

# Close codes that are no error.
_GOOD = (1000, 1001, 1005)

# Characters of a rejection's body that are shown, and of a message above a line being edited,
# which would have to wait for it.
_BODY = 2000
_LONGEST = 65_536

_HELP = """\
A line is sent as a text message, all but these:
  /ping [TEXT]           send a ping, show how long its pong took
  /binary HEX            send a binary message
  /close [CODE [REASON]] close, with 1000 by default; so does Ctrl-D
  //TEXT                 send /TEXT"""


def connect(options: argparse.Namespace, backend: Backend) -> int:
    """Run the command; return its exit status."""
    terminal = os.isatty(_STDIN) and os.isatty(_STDOUT)
    if terminal and os.environ.get("TERM", "dumb") != "dumb":
        return _Conversation(options, backend).run()
    return anyio.run(_exchange, options, backend=backend[0], backend_options=backend[1])


# Opening


def _open(options: argparse.Namespace) -> WebsocketScope:
    if "://" not in options.url:
        raise ValueError(f"expected a URL such as ws://localhost:8765/, got {options.url!r}")
    headers: list[tuple[str | bytes, str | bytes]] = []
    for field in options.header:
        name, colon, value = field.partition(":")
        if not colon:
            raise ValueError(f"expected a header field as 'Name: value', got {field!r}")
        # The bytes that were typed.
        headers.append((name.strip(), os.fsencode(value.strip())))
    if options.origin is not None:
        headers.append(("Origin", os.fsencode(options.origin)))
    return open_websocket(
        options.url,
        headers,
        options.subprotocol,
        ssl=_tls(options),
        settings=Settings(
            open_timeout=options.timeout,
            max_message_size=options.max_size or None,
            compression=Deflate() if options.compress else None,
        ),
        uds=options.uds,
    )


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    if not (options.insecure or options.ca_file or options.cert_file):
        return None
    if not parse_url(options.url).secure:
        raise ValueError("expected a URL of scheme wss with --insecure, --ca-file or --cert-file")
    context = trusting(options.ca_file)
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.cert_file:
        load_identity(context, options.cert_file, options.key_file)
    return context


def _explain(exc: Exception, options: argparse.Namespace) -> int:
    """Say why there is no connection; return the exit status."""
    text = str(exc)
    if exc.__cause__ is not None and str(exc.__cause__) not in text:
        text += f": {exc.__cause__}"
    if isinstance(exc, OSError) and not isinstance(exc, HandshakeError):
        text = f"cannot connect to {_place(options)}: {text}{_hint(exc)}"
    _say(text)
    if isinstance(exc, Rejected):
        _show_headers("<", exc.headers)
        for line in exc.body[:_BODY].decode(errors="replace").splitlines():
            _say(f"  {line}")
    return NOT_CONNECTED if isinstance(exc, OSError) else MISUSED


def _place(options: argparse.Namespace) -> str:
    """Return where the command line leads, without what may be secret in it."""
    if options.uds is not None:
        return f"the Unix socket {options.uds}"
    url = parse_url(options.url)
    proxy = choose_proxy(True, url)
    by_way_of = f" by way of {proxy.scheme}://{proxy.host}:{proxy.port}" if proxy else ""
    return f"{url.host}, port {url.port}{by_way_of}"


def _hint(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "; --ca-file trusts other authorities, --insecure anybody"
    if isinstance(exc, ssl.SSLError) and exc.reason == "WRONG_VERSION_NUMBER":
        return "; it may not speak TLS: is it ws, not wss?"
    return ""


def _say(text: str) -> None:
    """Show a line beside the messages, if somebody reads it."""
    with suppress(BrokenPipeError):
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def _show_headers(mark: str, headers: list[tuple[bytes, bytes]]) -> None:
    for name, value in headers:
        _say(f"{mark} {name.decode('latin-1')}: {value.decode('latin-1')}")


def _introduce(websocket: Websocket) -> None:
    _say(f"> {websocket.request.method} {websocket.request.target}")
    _show_headers(">", websocket.request.headers)
    _say(f"< {websocket.response.status}")
    _show_headers("<", websocket.response.headers)


def _status(websocket: Websocket) -> int:
    """Return the exit status after a connection's end."""
    return 0 if websocket.close_code in _GOOD else ENDED_BADLY


def _end(websocket: Websocket) -> str:
    return f"closed: {websocket.close_code} {websocket.close_reason or ''}".rstrip()


# For a script


async def _exchange(options: argparse.Namespace) -> int:
    """Do what a script wants, until a signal; return the exit status."""
    status = 0
    async with anyio.create_task_group() as tasks:

        async def end_when_told() -> None:
            nonlocal status
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for number in signals:
                    # As shells say it.
                    status = 128 + number
                    tasks.cancel_scope.cancel()

        tasks.start_soon(end_when_told)
        status = await _run_script(options)
        tasks.cancel_scope.cancel()
    return status


async def _run_script(options: argparse.Namespace) -> int:
    """Send what standard input has and write what comes to standard output."""
    async with AsyncExitStack() as stack:
        try:
            websocket = await stack.enter_async_context(_open(options))
        except (OSError, ValueError, HandshakeError) as exc:
            return _explain(exc, options)
        if options.verbose:
            _introduce(websocket)
        script = _Script(websocket, options)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(script.send)
            await script.receive()
            tasks.cancel_scope.cancel()
    status = _status(websocket)
    if status or options.verbose:
        _say(_end(websocket))
    return script.status or status


class _Script:
    def __init__(self, websocket: Websocket, options: argparse.Namespace) -> None:
        self._websocket = websocket
        self._separator = b"\0" if options.null else b"\n"
        self._binary: bool = options.binary
        self._limit: int | None = options.max_size or None
        self._wait: float = options.wait
        self._count: float = options.count or math.inf
        # Until when the next message is waited for.
        self._deadline = math.inf
        self._waiting = anyio.CancelScope()
        self.status = 0

    async def send(self) -> None:
        """Send one message for each record of standard input, then have the receiver wait."""
        try:
            async for record in records(read_from(_STDIN), self._separator, self._limit):
                await self._websocket.send(record if self._binary else decode(record))
        except ConnectionClosed:
            # The receiver notices, too.
            return
        except (OSError, ValueError) as exc:
            _say(f"cannot send what standard input has: {exc}")
            self.status = ENDED_BADLY
            self._wait = 0
        self._set_deadline()

    def _set_deadline(self) -> None:
        self._deadline = self._waiting.deadline = anyio.current_time() + self._wait

    async def receive(self) -> None:
        """Write messages until there are enough, or no more will come, or nobody reads them."""
        while self._count > 0:
            event = None
            with anyio.CancelScope(deadline=self._deadline) as self._waiting:
                try:
                    event = await self._websocket.receive()
                except ConnectionClosed:
                    return
            if event is None:
                return
            if not isinstance(event, Message):
                continue
            try:
                await write_to(_STDOUT, self._formatted(event.data))
            except BrokenPipeError:
                return
            except OSError as exc:
                _say(f"cannot write to standard output: {exc}")
                self.status = ENDED_BADLY
                return
            self._count -= 1
            if self._deadline < math.inf:
                self._set_deadline()

    def _formatted(self, data: str | bytes) -> bytes:
        """Return a message as it is, or as a terminal may have it."""
        if os.isatty(_STDOUT):
            if isinstance(data, bytes):
                data = hexadecimal(data)
            return "".join(f"{printable(line)}\n" for line in data.split("\n")).encode()
        return (data.encode() if isinstance(data, str) else bytes(data)) + self._separator


# For a person


class _Ended(Exception):
    """Leaves the line editor when the connection has ended."""


class _Conversation:
    """Lets a person talk: the main thread edits lines, the event loop runs in another one.

    The line editor is Python's own ``input`` with readline. It waits in C for the next key, so
    at the connection's end a signal calls it back.
    """

    def __init__(self, options: argparse.Namespace, backend: Backend) -> None:
        self._options = options
        self._backend = backend
        self._binary: bool = options.binary
        self._count: float = options.count or math.inf
        self._editing = False
        self._ended = threading.Event()
        self._left = threading.Event()

    def run(self) -> int:
        """Talk until the connection ends; return the exit status."""
        # It is what gives `input` its line editor.
        with suppress(ImportError):
            import readline

            # There is nothing here that a tabulator could complete. What is edited stays within
            # its row, so that what comes can be shown above it.
            readline.parse_and_bind("tab: self-insert")
            readline.parse_and_bind("set horizontal-scroll-mode on")
        # What is typed may be in any encoding, and is then sent as binary.
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        handlers = {signal.SIGUSR1: self._leave, signal.SIGTERM: _exit}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            with start_blocking_portal(self._backend[0], self._backend[1]) as portal:
                self._portal = portal
                with ExitStack() as stack:
                    try:
                        scope = portal.call(_open, self._options)
                        websocket = stack.enter_context(portal.wrap_async_context_manager(scope))
                    except (OSError, ValueError, HandshakeError) as exc:
                        return _explain(exc, self._options)
                    if self._options.verbose:
                        _introduce(websocket)
                    self._talk(websocket)
        except (KeyboardInterrupt, SystemExit):
            # What was being typed stays above.
            print()  # noqa: T201
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        _say(_end(websocket))
        return _status(websocket)

    def _talk(self, websocket: Websocket) -> None:
        agreed = f", subprotocol {websocket.subprotocol}" if websocket.subprotocol else ""
        _say(f"connected to {self._options.url}{agreed}; /help says more")
        showing = self._portal.start_task_soon(self._show, websocket)
        calling = threading.Thread(target=self._call_back, daemon=True)
        showing.add_done_callback(lambda _: calling.start())
        try:
            for line in self._lines():
                self._portal.call(self._obey, websocket, line)
                if websocket.state is ConnectionState.CLOSED:
                    return
        finally:
            self._left.set()

    def _lines(self) -> Iterator[str]:
        while not self._ended.is_set():
            try:
                self._editing = True
                try:
                    if self._ended.is_set():
                        return
                    line = input("> ")
                finally:
                    self._editing = False
            except (EOFError, _Ended):
                # What was being typed stays above.
                print()  # noqa: T201
                return
            yield line

    def _leave(self, number: int, frame: object) -> None:
        if self._editing:
            raise _Ended

    def _call_back(self) -> None:
        """Have the main thread leave its line editor.

        A signal just before it begins to wait for a key would be lost on it, hence again.
        """
        self._ended.set()
        main = threading.main_thread().ident
        assert main is not None
        while not self._left.wait(0.05):
            signal.pthread_kill(main, signal.SIGUSR1)

    async def _obey(self, websocket: Websocket, line: str) -> None:
        command, _, rest = line.partition(" ")
        try:
            match command:
                case "/help":
                    await _display("", _HELP)
                case "/ping":
                    seconds = await websocket.ping(rest or None)
                    await _display("", f"pong after {seconds * 1000:.1f} ms")
                case "/binary":
                    await websocket.send(_from_hexadecimal(rest))
                case "/close":
                    code, _, reason = rest.partition(" ")
                    await websocket.close(_close_code(code), reason)
                case _ if command.startswith("/") and not command.startswith("//"):
                    await _display("", f"there is no command {command}; /help says what there is")
                case _:
                    await websocket.send(self._message(line))
        except ValueError as exc:
            await _display("", str(exc))
        except ConnectionClosed:
            # How it has ended is said in the end.
            return

    def _message(self, line: str) -> str | bytes:
        data = line[line.startswith("//") :].encode(errors="surrogateescape")
        return data if self._binary else decode(data)

    async def _show(self, websocket: Websocket) -> None:
        with suppress(ConnectionClosedError):
            async for event in websocket:
                if isinstance(event, Message):
                    await _display("< ", _shown(event.data))
                    self._count -= 1
                    if self._count == 0:
                        await websocket.close(1000, "")


def _exit(number: int, frame: object) -> None:
    """Leave the line editor, which gives the terminal back as it was, and then the command."""
    raise SystemExit(128 + number)


def _from_hexadecimal(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"expected bytes in hexadecimal, such as 00 ff, got {text!r}") from None


def _close_code(text: str) -> int:
    if text and not text.isdecimal():
        raise ValueError(f"expected a close code, such as 1000, got {text!r}")
    return int(text or 1000)


def _shown(data: str | bytes) -> str:
    if isinstance(data, bytes):
        return hexadecimal(data)
    if len(data) > _LONGEST:
        return f"{data[:_LONGEST]}\n... {len(data)} characters in all"
    return data


async def _display(mark: str, text: str) -> None:
    """Show a text above the line that is being edited.

    The line is pushed down a row for each row of the text, which leaves the line editor's idea
    of its cursor true.
    """
    columns = os.get_terminal_size(_STDOUT).columns or 80
    encoding = sys.stdout.encoding
    for line in text.split("\n"):
        for row in _rows(printable(line), columns - len(mark)):
            shown = (mark + row).encode(encoding, "backslashreplace")
            # Save the cursor; have a row free below; insert one above; come back, a row lower.
            await write_to(_STDOUT, b"\x1b7\n\x1b[A\x1b[L\r" + shown + b"\n\x1b8\x1b[B")
            # A message cannot pass for something else by its line breaks or its length.
            mark = " " * len(mark)


def _rows(text: str, columns: int) -> Iterator[str]:
    """Cut a text into pieces that each fit into a row."""
    row, width = "", 0
    for char in text:
        cells = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        # The last column is left free: at it, terminals differ about where the cursor is.
        if width + cells >= columns and row:
            yield row
            row, width = "", 0
        row += char
        width += cells
    yield row
