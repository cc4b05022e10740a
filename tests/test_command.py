"""The command: real processes, pipes and pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import signal
import ssl
import struct
import subprocess
import sys
import termios
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pyte
import pytest
from anyio.streams.text import TextReceiveStream
from anyio.streams.tls import TLSAttribute
from hypothesis import given
from hypothesis import strategies as st

from asyncwebsockets import (
    ConnectionClosedOK,
    Reject,
    Rejected,
    Request,
    Websocket,
    create_websocket,
    open_websocket,
    open_websocket_client,
    serve,
)
from asyncwebsockets.__main__ import main
from asyncwebsockets._cli_connect import _rows
from asyncwebsockets._descriptors import records
from asyncwebsockets._printable import hexadecimal, printable
from asyncwebsockets.events import Message

from . import pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import trustme
    from anyio.abc import Process

COMMAND = [sys.executable, "-m", "asyncwebsockets"]

#: What would set a terminal's title, clear it, turn text around, and move its cursor.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202etxt\u2066\x9b5A\x7f\r."
HARMLESS = r"\x1b]0;owned\x07\x1b[2J\u202etxt\u2066\x9b5A\x7f\r."

each_backend = pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])


@pytest.fixture
def anyio_backend() -> str:
    """What the test's own side runs on; the command has --backend."""
    return "asyncio"


# The parts


@given(st.text())
def test_what_is_shown_is_printable(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_controls_are_shown_escaped() -> None:
    assert printable(HOSTILE) == HARMLESS
    assert hexadecimal(b"\x1b[2J") == "binary, 4 bytes: 1b 5b 32 4a"
    assert hexadecimal(bytes(100)).endswith(" 00 ...")


@given(st.text(alphabet="ab\u6f22\u0301"), st.integers(3, 9))
def test_rows_are_cut_within_the_columns(text: str, columns: int) -> None:
    rows = list(_rows(text, columns))
    assert "".join(rows) == text
    for row in rows:
        assert sum(2 if char == "\u6f22" else 1 for char in row) < columns


@given(st.lists(st.binary(max_size=8)).map(lambda chunks: [c.replace(b"b", b"\n") for c in chunks]))
def test_records_do_not_depend_on_how_they_are_read(chunks: list[bytes]) -> None:
    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def collect() -> list[bytes]:
        return [record async for record in records(source(), b"\n", None)]

    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    if not expected[-1]:
        del expected[-1]
    assert anyio.run(collect) == expected


@pytest.mark.anyio
async def test_a_record_over_the_limit_is_seen_before_its_end() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"four\n"
        while True:
            yield b"12345"

    cut = records(endless(), b"\n", 4)
    assert await anext(cut) == b"four"
    with pytest.raises(ValueError, match="at most 4 bytes"):
        await anext(cut)


# connect, in a script


async def echo(websocket: Websocket) -> None:
    async for event in websocket:
        if isinstance(event, Message):
            await websocket.send(event.data)


@asynccontextmanager
async def served(handler: Any, **options: Any) -> AsyncIterator[str]:
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(partial(serve, handler, "127.0.0.1", 0, **options))
        yield f"ws://127.0.0.1:{server.port}/"
        await server.close(grace=0)


async def run(*arguments: str, input: bytes = b"", **options: Any) -> Any:
    with anyio.fail_after(30):
        return await anyio.run_process(
            [*COMMAND, "connect", *arguments], input=input, check=False, **options
        )


async def shell(url: str, redirections: str) -> Any:
    with anyio.fail_after(30):
        return await anyio.run_process(
            ["sh", "-c", f'"$@" --wait=0.1 {redirections}', "sh", *COMMAND, "connect", url],
            check=False,
        )


@pytest.mark.anyio
@each_backend
async def test_lines_are_sent_and_messages_written(backend: str) -> None:
    async with served(echo) as url:
        done = await run(url, "--count=3", f"--backend={backend}", input=b"one\n\xff\r\nthree")
    assert done.stdout == b"one\n\xff\r\nthree\n"
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.anyio
async def test_messages_come_unchanged_to_a_pipe_and_stay_apart_with_null() -> None:
    kinds = []

    async def handler(websocket: Websocket) -> None:
        async for event in websocket:
            if isinstance(event, Message):
                kinds.append(type(event.data))
                await websocket.send(event.data)

    text = f"{HOSTILE}\nsecond line".encode()
    async with served(handler) as url:
        done = await run(url, "-0", "-b", "--count=2", input=text + b"\0two\0")
    assert done.stdout == text + b"\0two\0"
    assert kinds == [bytes, bytes]


@pytest.mark.anyio
async def test_what_comes_after_the_end_of_input_is_waited_for(tmp_path: Path) -> None:
    async def handler(websocket: Websocket) -> None:
        assert await websocket.receive_text() == "from a file"
        for number in range(3):
            await websocket.send(str(number))
        await websocket.close(1000, "")

    (tmp_path / "input").write_text("from a file\n")
    async with served(handler) as url:
        with (tmp_path / "input").open() as file, (tmp_path / "output").open("wb") as output:
            process = await anyio.open_process(
                [*COMMAND, "connect", url, "--wait=inf"], stdin=file, stdout=output
            )
            async with process:
                assert await process.wait() == 0
    assert (tmp_path / "output").read_text() == "0\n1\n2\n"


@pytest.mark.anyio
async def test_a_reader_that_leaves_ends_it() -> None:
    async def handler(websocket: Websocket) -> None:
        while True:
            await websocket.send("y" * 1000)
            await anyio.sleep(0.01)

    async with served(handler) as url:
        reader, writer = os.pipe()
        process = await anyio.open_process([*COMMAND, "connect", url], stdout=writer)
        os.close(writer)
        async with process:
            await anyio.wait_readable(reader)
            assert os.read(reader, 10) == b"y" * 10
            os.close(reader)
            with anyio.fail_after(30):
                assert await process.wait() == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("backend", "number", "status"),
    [
        ("asyncio", signal.SIGTERM, 143),
        ("uvloop", signal.SIGINT, 130),
        ("trio", signal.SIGINT, 130),
    ],
)
async def test_a_signal_ends_it(backend: str, number: signal.Signals, status: int) -> None:
    codes = []

    async def handler(websocket: Websocket) -> None:
        await websocket.send("begun")
        await websocket.wait_closed()
        codes.append(websocket.close_code)

    async with served(handler) as url:
        process = await anyio.open_process([*COMMAND, "connect", url, f"--backend={backend}"])
        assert process.stdout is not None
        assert process.stderr is not None
        with anyio.fail_after(30):
            async with process:
                assert await process.stdout.receive() == b"begun\n"
                process.send_signal(number)
                assert await process.wait() == status
                # Not even a traceback.
                with pytest.raises(anyio.EndOfStream):
                    await process.stderr.receive()
    assert codes == [1001]


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="Linux has files that fail")
async def test_what_cannot_be_read_or_written_is_said_and_is_status_1() -> None:
    async def handler(websocket: Websocket) -> None:
        await websocket.send("hello")
        await websocket.wait_closed()

    async with served(handler) as url:
        done = await shell(url, "</dev/null >/dev/full")
        assert done.returncode == 1
        assert done.stderr == (
            b"cannot write to standard output: [Errno 28] No space left on device\n"
        )
        done = await shell(url, "</proc/self/mem >/dev/null")
        assert done.returncode == 1
        assert done.stderr == (
            b"cannot send what standard input has: [Errno 5] Input/output error\n"
        )


@pytest.mark.anyio
async def test_no_socket_takes_the_place_of_what_a_shell_has_closed() -> None:
    ends = []

    async def handler(websocket: Websocket) -> None:
        await websocket.send("hello")
        with pytest.raises(ConnectionClosedOK) as ended:
            await websocket.receive()
        ends.append(ended.value.code)

    async with served(handler) as url:
        done = await shell(url, "<&- >&-")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = await shell(url, "2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"")
    assert ends == [1000]


@pytest.mark.anyio
async def test_a_close_with_an_error_is_shown_and_is_status_1() -> None:
    async def handler(websocket: Websocket) -> None:
        await websocket.close(4001, HOSTILE)

    async with served(handler) as url:
        done = await run(url, "--wait=inf")
    assert done.returncode == 1
    assert done.stderr.decode() == f"closed: 4001 {HARMLESS}\n"


@pytest.mark.anyio
async def test_a_rejection_is_shown_and_is_status_3() -> None:
    seen: list[Request] = []

    async def filter(request: Request) -> Reject:
        seen.append(request)
        return Reject(401, [("X-Why", "\x9b2J")], HOSTILE.encode())

    async with served(echo, filter=filter) as url:
        done = await run(
            *(url, "-H", "X-Token: 1:2", "-H", "X-Name:\u2603 "),
            *("--subprotocol=a", "--subprotocol=b", "--origin=http://o"),
        )
    assert done.returncode == 3
    assert seen[0].header("X-Token") == "1:2"
    assert (b"X-Name", "\u2603".encode()) in seen[0].headers
    assert seen[0].header("Origin") == "http://o"
    assert seen[0].subprotocols == ["a", "b"]
    shown = done.stderr.decode()
    assert shown.splitlines()[0] == "the handshake was answered with status 401, expected 101"
    assert r"< X-Why: \x9b2J" in shown
    assert r"\x1b]0;owned\x07" in shown
    assert shown.replace("\n", "").isprintable()


@pytest.mark.anyio
async def test_a_certificate_is_verified_unless_told_not_to(server_tls: ssl.SSLContext) -> None:
    async with served(echo, ssl=server_tls) as url:
        url = url.replace("ws:", "wss:")
        refused = await run(url)
        done = await run(url, "--insecure", "--count=1", "-v", input=b"hello")
    assert refused.returncode == 3
    assert b"certificate verify failed" in refused.stderr
    assert b"; --ca-file trusts other authorities, --insecure anybody\n" in refused.stderr
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    assert b"> GET /\n> Host: 127.0.0.1:" in done.stderr
    assert b"< 101\n" in done.stderr
    assert b"closed: 1000\n" in done.stderr


@pytest.mark.anyio
async def test_a_certificate_of_the_client(
    authority: trustme.CA, server_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    names = []

    async def handler(websocket: Websocket) -> None:
        names.append(websocket.extra(TLSAttribute.peer_certificate)["subjectAltName"])
        await echo(websocket)

    trusted, both = str(tmp_path / "ca.pem"), str(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(trusted)
    own = authority.issue_cert("somebody@example.com")
    own.private_key_and_cert_chain_pem.write_to_path(both)
    options = [f"--ca-file={trusted}", "--count=1"]
    async with served(handler, ssl=context) as url:
        url = url.replace("ws:", "wss:")
        done = await run(url, *options, f"--cert-file={both}", input=b"hello")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")
        done = await run(url, *options)
    assert done.returncode == 3
    assert done.stdout == b""
    assert names == [(("email", "somebody@example.com"),)]


@pytest.mark.anyio
async def test_tls_to_who_does_not_speak_it_is_said() -> None:
    async with served(echo) as url:
        done = await run(url.replace("ws:", "wss:"))
    assert done.returncode == 3
    assert b"; it may not speak TLS: is it ws, not wss?\n" in done.stderr


def test_where_nobody_listens_it_is_status_3(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert main(["connect", *arguments]) == 3
        return capfd.readouterr().err

    refused = said("ws://user:secret@127.0.0.1:1/?secret")
    assert refused.startswith("cannot connect to 127.0.0.1, port 1: ")
    assert "Connect call failed ('127.0.0.1', 1)" in refused
    assert "secret" not in refused
    monkeypatch.setenv("ws_proxy", "http://user:secret@127.0.0.1:1")
    refused = said("ws://example.com/")
    assert refused.startswith("cannot connect to example.com, port 80 by way of http://127.0.0.1:1")
    refused = said("ws://example.com/", "--uds=/no/such")
    assert refused.startswith("cannot connect to the Unix socket /no/such: [Errno 2] ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["connect", "http://localhost/"], "expected a URL of scheme ws or wss"),
        (["connect", "localhost:8765"], "expected a URL such as ws://localhost:8765/, got"),
        (["connect", "ws://localhost/", "-k"], "expected a URL of scheme wss with --insecure"),
        (["connect", "wss://localhost/", "--ca-file=no"], "(PEM) in no: No such file"),
        (["connect", "wss://localhost/", "--cert-file=no"], "(PEM) in no: No such file"),
        (["connect", "ws://localhost/", "-H", "none"], "expected a header field"),
        (["connect", "ws://localhost/", "--wait=nan"], "expected seconds"),
        (["connect", "ws://localhost/", "--count=-1"], "expected a number"),
        (["connect", "wss://localhost/", "--key-file=k"], "expected --cert-file"),
        (["serve", "--port=0"], "the following arguments are required: what\n"),
        (["serve", "exec"], "expected a command behind exec"),
        (["serve", "echo", "--port=65536"], "expected a port from 0 to 65535, got '65536'"),
        (["serve", "echo", "broadcast"], "expected only options behind echo, got broadcast"),
        (["serve", "echo", "--port=0", "x"], "invalid choice: 'x'"),
    ],
)
def test_a_wrong_command_line_is_status_2(
    arguments: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(arguments)
    except SystemExit as exc:
        assert isinstance(exc.code, int)
        status = exc.code
    assert status == 2
    assert complaint in capfd.readouterr().err


# connect, at a terminal


class Terminal:
    """A terminal with a command in it, and a person who looks before going on."""

    def __init__(self, columns: int = 60) -> None:
        self.screen = pyte.Screen(columns, 24)
        self.title_before = self.screen.title
        self._stream = pyte.ByteStream(self.screen)
        self._master, self._slave = pty.openpty()
        # What `termios.tcsetwinsize` does from Python 3.11 on.
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    @asynccontextmanager
    async def running(self, *arguments: str, cwd: Path | None = None) -> AsyncIterator[Process]:
        process = await anyio.open_process(
            [*COMMAND, "connect", *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "TERM": "xterm", "LANG": "C.UTF-8", "INPUTRC": os.devnull},
            start_new_session=True,
            cwd=cwd,
        )
        os.close(self._slave)
        try:
            with anyio.fail_after(30):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.aclose()
            os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode(errors="surrogateescape"))

    @property
    def echoes(self) -> bool:
        """Whether it shows what is typed by itself, as it does where there is no line editor."""
        flags: int = termios.tcgetattr(self._master)[3]
        return bool(flags & termios.ECHO)

    def resize(self, process: Process, columns: int) -> None:
        self.screen.resize(24, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        # The terminal sends it to whom it controls.
        process.send_signal(signal.SIGWINCH)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    async def shows(self, *lines: str | re.Pattern[str]) -> None:
        """Look until the last lines are these."""
        while not self._ends_with(lines):
            await self._look()

    async def shows_cursor_at(self, column: int) -> None:
        """Look until the cursor is there."""
        while self.screen.cursor.x != column:
            await self._look()

    async def _look(self) -> None:
        await anyio.wait_readable(self._master)
        try:
            data = os.read(self._master, 65_536)
        except OSError:
            # Linux's way of saying that the other end is gone.
            data = b""
        assert data, self.lines
        self._stream.feed(data)

    def _ends_with(self, lines: tuple[str | re.Pattern[str], ...]) -> bool:
        shown = self.lines[-len(lines) :]
        return len(shown) == len(lines) and all(
            line.fullmatch(there) if isinstance(line, re.Pattern) else line == there
            for line, there in zip(lines, shown, strict=True)
        )


@pytest.mark.anyio
@each_backend
async def test_a_person_talks(backend: str) -> None:
    connected = anyio.Event()
    box: list[Websocket] = []

    async def handler(websocket: Websocket) -> None:
        box.append(websocket)
        connected.set()
        await echo(websocket)

    async with served(handler) as url:
        terminal = Terminal()
        async with terminal.running(url, f"--backend={backend}", "--subprotocol=talk") as process:
            welcome = f"connected to {url}, subprotocol talk; /help says more"
            first, second = welcome[:60], welcome[60:]
            await terminal.shows(*filter(None, (first.rstrip(), second, ">")))
            # What is being typed stays, with its cursor, below what comes.
            terminal.type("good mornng\x1b[D\x1b[D")
            await terminal.shows("> good mornng")
            await box[0].send(HOSTILE + "\nand a second line")
            await terminal.shows(f"< {HARMLESS}", "  and a second line", "> good mornng")
            terminal.type("i\r")
            await terminal.shows("> good morning", "< good morning", ">")
            terminal.type("/binary 00 1b\r")
            await terminal.shows("> /binary 00 1b", "< binary, 2 bytes: 00 1b", ">")
            terminal.type("//slash\r")
            await terminal.shows("> //slash", "< /slash", ">")
            terminal.type("/what\r")
            await terminal.shows(
                "> /what", "there is no command /what; /help says what there is", ">"
            )
            terminal.type("/ping\r")
            await terminal.shows("> /ping", re.compile(r"pong after \d+\.\d ms"), ">")
            terminal.type("\x04")
            await terminal.shows("closed: 1000")
            assert await process.wait() == 0
    assert terminal.screen.title == terminal.title_before
    assert box[0].close_code == 1000


@pytest.mark.anyio
async def test_a_person_is_called_back_at_the_end() -> None:
    box: list[Websocket] = []

    async def handler(websocket: Websocket) -> None:
        box.append(websocket)
        await websocket.wait_closed()

    async with served(handler) as url:
        terminal = Terminal(columns=80)
        async with terminal.running(url) as process:
            await terminal.shows(f"connected to {url}; /help says more", ">")
            terminal.type("half a sen")
            await terminal.shows("> half a sen")
            await box[0].close(4000, HOSTILE)
            await terminal.shows("> half a sen", f"closed: 4000 {HARMLESS}")
            assert await process.wait() == 1


@pytest.mark.anyio
async def test_a_person_makes_mistakes_and_leaves() -> None:
    box: list[Websocket] = []

    async def handler(websocket: Websocket) -> None:
        box.append(websocket)
        await echo(websocket)

    async with served(handler) as url:
        terminal = Terminal(columns=80)
        async with terminal.running(url) as process:
            await terminal.shows(f"connected to {url}; /help says more", ">")
            for typed, answer in (
                ("/binary zz", "expected bytes in hexadecimal, such as 00 ff, got 'zz'"),
                ("/close now", "expected a close code, such as 1000, got 'now'"),
                ("/close 99", re.compile("expected a close code of .*, got 99")),
                (f"/ping {'x' * 126}", "expected a ping payload of at most 125 bytes, got 126"),
                # What is no UTF-8 is binary, as in a script.
                ("a\udcff", "< binary, 2 bytes: 61 ff"),
                ("", "<"),
            ):
                terminal.type(f"{typed}\r")
                await terminal.shows(answer, ">")
            terminal.type("/help\r")
            await terminal.shows("  //TEXT                 send /TEXT", ">")
            terminal.type("/close 4001 good bye\r")
            await terminal.shows("> /close 4001 good bye", "closed: 4001 good bye")
            assert await process.wait() == 1
    assert (box[0].close_code, box[0].close_reason) == (4001, "good bye")


@pytest.mark.anyio
async def test_long_lines_and_long_messages_stay_apart() -> None:
    box: list[Websocket] = []

    async def handler(websocket: Websocket) -> None:
        box.append(websocket)
        await echo(websocket)

    async with served(handler) as url:
        terminal = Terminal(columns=60)
        async with terminal.running(url) as process:
            await terminal.shows(f"connected to {url}; /help says more", ">")
            terminal.type("a" * 70)
            # Its beginning is scrolled out of sight.
            await terminal.shows(re.compile("<a+"))
            await box[0].send(f"{'b' * 57}> not typed\n\u6f22")
            await terminal.shows(*(f"< {'b' * 57}", "  > not typed", "  \u6f22", re.compile("<a+")))
            terminal.type("\x01c\r")
            await terminal.shows(f"< c{'a' * 56}", f"  {'a' * 14}", ">")
            # Pasted.
            terminal.type("\x1b[200~one\rtwo\x1b[201~")
            await terminal.shows("> one^Jtwo")
            await box[0].send("meanwhile")
            await terminal.shows("< meanwhile", "> one^Jtwo")
            terminal.type("\r")
            await terminal.shows("> one^Jtwo", "< one", "  two", ">")
            terminal.resize(process, 90)
            # Out of its history.
            terminal.type("\x1b[A\x1b[Ad")
            await terminal.shows(f"> c{'a' * 70}d")
            terminal.type("\r")
            await terminal.shows(f"< c{'a' * 70}d", ">")
            await box[0].send("x" * 70_000)
            await terminal.shows("  ... 70000 characters in all", ">")


@pytest.mark.anyio
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_it_and_the_terminal_is_as_before(
    number: signal.Signals, status: int
) -> None:
    box: list[Websocket] = []

    async def handler(websocket: Websocket) -> None:
        box.append(websocket)
        await websocket.wait_closed()

    async with served(handler) as url:
        terminal = Terminal()
        async with terminal.running(url) as process:
            await terminal.shows(re.compile("connected to .*"), ">")
            terminal.type("half a sen")
            await terminal.shows("> half a sen")
            assert not terminal.echoes
            # One that comes just before the line editor waits for a key is lost on it.
            while terminal.screen.cursor.x > 0:
                process.send_signal(number)
                with anyio.move_on_after(5):
                    await terminal.shows_cursor_at(0)
            assert await process.wait() == status
            assert terminal.echoes
            assert terminal.lines[-1] == "> half a sen"
    assert box[0].close_code == 1001


@pytest.mark.anyio
async def test_a_person_sends_binary_and_counts() -> None:
    async with served(echo) as url:
        terminal = Terminal()
        async with terminal.running(url, "--binary", "--count=2") as process:
            await terminal.shows(re.compile("connected to .*"), ">")
            terminal.type("hello\r")
            await terminal.shows("> hello", "< binary, 5 bytes: 68 65 6c 6c 6f", ">")
            terminal.type("//\r")
            await terminal.shows("> //", "< binary, 1 bytes: 2f", ">", "closed: 1000")
            assert await process.wait() == 0


# serve


class Serving:
    """The running command."""

    def __init__(self, process: Process) -> None:
        assert process.stderr is not None
        self.process = process
        self._lines = TextReceiveStream(process.stderr)
        self._said = ""

    async def says(self, text: str) -> str:
        """Read until it has said that; return the rest of the line."""
        while text not in self._said or "\n" not in self._said.split(text, 1)[1]:
            self._said += await self._lines.receive()
        rest, _, self._said = self._said.split(text, 1)[1].partition("\n")
        return rest


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Serving]:
    process = await anyio.open_process([*COMMAND, "serve", "--port=0", *arguments])
    try:
        with anyio.fail_after(30):
            yield Serving(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.aclose()


@asynccontextmanager
async def serving(*arguments: str, status: int = 0) -> AsyncIterator[str]:
    """Run the command, give its URL, and end it by SIGTERM."""
    async with started(*arguments) as command:
        yield await command.says("listening on ")
        command.process.send_signal(signal.SIGTERM)
        assert await command.process.wait() == status


@pytest.mark.anyio
@each_backend
async def test_echo_and_its_drain(backend: str) -> None:
    async with anyio.create_task_group() as tasks:
        async with serving(f"--backend={backend}", "--subprotocol=b", "echo") as url:
            websocket = await stay(url, tasks, subprotocols=["a", "b"])
            assert websocket.subprotocol == "b"
            with pytest.raises(Rejected) as caught:
                async with open_websocket(url, {"Origin": url.replace("ws", "http")}):
                    raise AssertionError("a page of another origin has connected")
            assert caught.value.status == 403
            await websocket.send("hello")
            assert await websocket.receive_text() == "hello"
        with pytest.raises(ConnectionClosedOK) as ended:
            await websocket.receive()
        assert ended.value.code == 1012
        tasks.cancel_scope.cancel()


async def stay(url: str, tasks: Any, **options: Any) -> Websocket:
    """Open a connection that outlives the block."""

    async def hold(*, task_status: Any) -> None:
        async with open_websocket(url, **options) as websocket:
            task_status.started(websocket)
            await anyio.sleep_forever()

    websocket: Websocket = await tasks.start(hold)
    return websocket


@pytest.mark.anyio
async def test_broadcast_on_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def connect() -> Any:
        return open_websocket_client(await anyio.connect_unix(path), "localhost", "/")

    async with serving(f"--uds={path}", "broadcast") as where:
        assert where == f"the Unix socket {path}"
        async with await connect() as one, await connect() as two, await connect() as three:
            await two.ping()
            await three.ping()
            await one.send("to all")
            assert await two.receive_text() == await three.receive_text() == "to all"
            await two.send(b"\xff")
            # Its own message did not come back.
            assert await one.receive_bytes() == await three.receive_bytes() == b"\xff"


DEAF = """
import os, pathlib, signal, sys, time
os.close(0)
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).touch(), sys.exit()))
print("deaf", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.anyio
async def test_a_command_that_does_not_read_ends_with_its_client(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with serving("exec", sys.executable, "-c", DEAF, str(mark)) as url:
        async with open_websocket(url) as websocket:
            assert await websocket.receive_text() == "deaf"
            for _ in range(3):
                await websocket.send("hello?")
            await websocket.ping()
        while not mark.exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.02)


SCRIPT = """
import os, sys
print(os.environ["WEBSOCKET_PATH"], os.environ["WEBSOCKET_QUERY"], flush=True)
for line in sys.stdin:
    if line == "end\\n":
        sys.exit(3)
    print(line.upper(), end="", flush=True)
with open(sys.argv[1], "w") as file:
    file.write("saw the end")
"""


@pytest.mark.anyio
async def test_a_command_for_each_connection(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with serving("exec", sys.executable, "-c", SCRIPT, str(mark)) as url:
        async with open_websocket(f"{url}/room?n=1") as websocket:
            assert await websocket.receive_text() == "/room n=1"
            await websocket.send("two\nlines")
            assert [await websocket.receive_text() for _ in range(2)] == ["TWO", "LINES"]
            await websocket.send("end")
            with pytest.raises(ConnectionClosedOK) as ended:
                await websocket.receive()
            assert (ended.value.code, ended.value.reason) == (
                1011,
                "the command ended with status 3",
            )
        assert not mark.exists()
        async with open_websocket(url) as websocket:
            assert await websocket.receive_text() == "/ "
    # The drain has waited for the process.
    assert mark.read_text() == "saw the end"


STUBBORN = """
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(sys.argv[1]).touch())
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


@pytest.mark.anyio
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_second_signal_does_not_wait_for_a_command(backend: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = ["exec", sys.executable, "-c", STUBBORN, str(mark)]
    async with started(f"--backend={backend}", *command) as server:
        # It does not answer the Close, so that nothing else ends before the second signal.
        websocket = await create_websocket(await server.says("listening on "))
        pid = int(await websocket.receive_text())
        server.process.send_signal(signal.SIGTERM)
        await server.says("SIGTERM: closing")
        server.process.send_signal(signal.SIGINT)
        await server.says("SIGINT: closing")
        assert await server.process.wait() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        await websocket.abort()
    # Nobody has asked it before.
    assert not mark.exists()


@pytest.mark.anyio
@pytest.mark.parametrize("ignored", [False, True], ids=["alone", "nohup"])
async def test_a_terminal_that_goes_ends_the_server_unless_told_not_to(ignored: bool) -> None:
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        process = await anyio.open_process([*COMMAND, "serve", "--port=0", "echo"])
    finally:
        signal.signal(signal.SIGHUP, before)
    async with process:
        with anyio.fail_after(30):
            server = Serving(process)
            url = await server.says("listening on ")
            async with open_websocket(url) as websocket:
                process.send_signal(signal.SIGHUP)
                if ignored:
                    await websocket.ping()
                    process.send_signal(signal.SIGTERM)
                await websocket.wait_closed()
                assert websocket.close_code == 1012
            assert await process.wait() == 0


@pytest.mark.anyio
async def test_a_server_with_tls_and_one_connection_at_most(
    authority: trustme.CA, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    files = [f"--cert-file={chain}", f"--key-file={key}"]
    # Only exec keeps what is behind it for the command.
    async with serving("echo", *files, "--max-connections=1") as url:
        assert url.startswith("wss://127.0.0.1:")
        async with open_websocket(url, ssl=client_tls) as websocket:
            await websocket.send("hello")
            assert await websocket.receive_text() == "hello"
            with pytest.raises(Rejected) as caught:
                async with open_websocket(url, ssl=client_tls):
                    raise AssertionError("a second one has connected")
            assert caught.value.status == 503


@pytest.mark.anyio
async def test_a_command_that_says_too_much_at_once(tmp_path: Path) -> None:
    code = "print('short', flush=True); print('x' * 1000, flush=True); input()"
    async with started("--max-size=100", "exec", sys.executable, "-c", code) as server:
        async with open_websocket(await server.says("listening on ")) as websocket:
            assert await websocket.receive_text() == "short"
            await websocket.wait_closed()
            assert (websocket.close_code, websocket.close_reason) == (
                1011,
                "the command has said too much at once",
            )
        said = await server.says("has said too much at once: ")
        assert said == "expected a message of at most 100 bytes, got 1000 or more"
        server.process.send_signal(signal.SIGTERM)
        assert await server.process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["exec", "no-such-command"], "expected a command that can be run"),
        (["--cert-file=missing", "echo"], "(PEM) in missing: No such file"),
        (["--cert-file=a", "--key-file=b", "echo"], "(PEM) in a and b: No such file"),
        (["--host=192.0.2.1", "echo"], "cannot listen on 192.0.2.1, port 0: "),
        (["--uds=/no/such", "echo"], "cannot listen on the Unix socket /no/such: "),
        (["--origin=example.com", "echo"], "expected an origin such as"),
        (["--subprotocol=a b", "echo"], "expected a token as a subprotocol, got 'a b'"),
        (["--max-connections=0", "echo"], "expected max_connections above 0"),
    ],
)
def test_a_server_that_cannot_start_is_status_1(
    arguments: list[str], complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["serve", "--port=0", *arguments]) == 1
    assert complaint in caplog.text


# Its page


class Reader(pages.Terminal):
    """Does what a page says, also where it talks to ``connect``: behind each ``>`` it types."""

    def type(self, command: str, shown: str) -> None:
        if shown.startswith("connected to "):
            anyio.run(self._talk, shlex.split(command)[2:], shown)
        else:
            super().type(command, shown)

    async def _talk(self, arguments: list[str], shown: str) -> None:
        terminal = Terminal(columns=100)
        greeting, *turns = re.split("^> ", shown, flags=re.MULTILINE)
        async with terminal.running(*arguments, cwd=self.directory) as process:
            await terminal.shows(*rows(greeting), ">")
            for turn in turns:
                typed, _, answer = turn.partition("\n")
                if typed == "^D":
                    terminal.type("\x04")
                    await terminal.shows(">", *rows(answer))
                else:
                    terminal.type(f"{typed}\r")
                    await terminal.shows(f"> {typed}", *rows(answer), ">")
            assert await process.wait() == 0


def rows(shown: str) -> list[re.Pattern[str]]:
    return [re.compile(re.escape(row).replace(r"\.\.\.", ".*")) for row in shown.splitlines()]


def test_its_page_runs_as_it_stands(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    try:
        reader.follow(pages.DOCS / "command.md")
    finally:
        reader.close()


def test_the_command_explains_itself() -> None:
    done = subprocess.run(
        [*COMMAND, "connect", "--help"], capture_output=True, text=True, check=True, timeout=30
    )
    assert "exit status:" in done.stdout
