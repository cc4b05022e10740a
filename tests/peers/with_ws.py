"""Node's ws, driven by a script of its own: node/peer.js."""

from __future__ import annotations

import asyncio
import json
import shutil
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from .peer import HEADER, Closed, Data, End, Listening, Options, Peer, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from anyio.abc import Process

DIRECTORY = Path(__file__).with_name("node")


class Node:
    """The process: requests go in and answers come out, each a line of JSON."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._stdin = process.stdin
        self._stdout = BufferedByteReceiveStream(process.stdout)
        self._stderr = process.stderr
        self._writing = anyio.Lock()
        self._requests = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._over = False
        self.errors = b""

    async def ask(self, name: str, **parameters: Any) -> Any:
        if self._over:
            raise self._ended()
        self._requests += 1
        request = self._requests
        answer = self._answers[request] = asyncio.get_running_loop().create_future()
        try:
            line = json.dumps({"request": request, "name": name, **parameters})
            async with self._writing:
                await self._stdin.send(line.encode() + b"\n")
            return await answer
        finally:
            del self._answers[request]

    async def read(self) -> None:
        """Hand out the answers, until the process has ended."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read_errors)
            try:
                while True:
                    self._answer(json.loads(await self._stdout.receive_until(b"\n", 2**30)))
            except (anyio.EndOfStream, anyio.IncompleteRead):
                pass
        self._over = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._ended())

    def _answer(self, answered: dict[str, Any]) -> None:
        answer = self._answers.get(answered["request"])
        if answer is None or answer.done():
            # Who asked was cancelled.
            return
        if "error" in answered:
            answer.set_exception(RuntimeError(answered["error"]))
        else:
            answer.set_result(answered["result"])

    async def _read_errors(self) -> None:
        async for data in self._stderr:
            self.errors += data

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"node has ended: {self.errors.decode()}")


class WsEnd(End):
    def __init__(self, node: Node, opened: dict[str, Any]) -> None:
        super().__init__(opened["subprotocol"], opened["header"], opened["target"])
        self._node = node
        self._id = opened["id"]

    async def send(self, data: Data) -> None:
        await self.send_fragments([data])

    async def send_fragments(self, pieces: Sequence[Data]) -> None:
        encoded = [
            {"text": piece} if isinstance(piece, str) else {"binary": b64encode(piece).decode()}
            for piece in pieces
        ]
        await self._ask("send", pieces=encoded)

    async def receive(self) -> list[Data]:
        received = await self._ask("receive")
        self.pings += [b64decode(payload) for payload in received["pings"]]
        message = received["message"]
        return [message["text"] if "text" in message else b64decode(message["binary"])]

    async def ping(self, payload: bytes) -> None:
        await self._ask("ping", payload=b64encode(payload).decode())

    async def close(self, code: int | None, reason: str) -> None:
        await self._ask("close", code=code, reason=reason)

    async def closed(self) -> Closed:
        return Closed(**await self._ask("closed"))

    async def drop(self) -> None:
        await self._ask("drop")

    async def _ask(self, name: str, **parameters: Any) -> Any:
        return await self._node.ask(name, id=self._id, **parameters)


class Ws(Peer):
    name = "ws"
    # It joins the fragments, and shows the message only.
    shows_fragments = False
    shows_pings = True
    compresses = True
    closes_without_code = True
    wants_subprotocol = True

    _node: Node

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("node") is None:
            return "there is no node: install Node.js and npm, and run `make test`"
        if not (DIRECTORY / "node_modules" / "ws" / "package.json").is_file():
            return "there is no ws: install npm and run `make test`"
        return None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        # It ends with its input, and so without the signals that end the tests.
        process = await anyio.open_process(
            ["node", "peer.js"], cwd=DIRECTORY, start_new_session=True
        )
        async with process, anyio.create_task_group() as tasks:
            self._node = Node(process)
            tasks.start_soon(self._node.read)
            yield
            assert process.stdin is not None
            # The process ends with its input; if not, it is killed when it is left.
            await process.stdin.aclose()
            with anyio.fail_after(10):
                code = await process.wait()
        if code != 0:
            raise RuntimeError(f"node has ended with {code}: {self._node.errors.decode()}")

    @asynccontextmanager
    async def connect(self, url: str, options: Options) -> AsyncGenerator[End, None]:
        opened = await self._node.ask("connect", url=url, **_described(options))
        if "refused" in opened:
            refused = opened["refused"]
            if refused is None:
                raise Refused(None)
            raise Refused(refused["status"], refused["headers"], b64decode(refused["body"]))
        end = WsEnd(self._node, opened)
        try:
            yield end
            await end.close(1000, "")
        finally:
            with anyio.CancelScope(shield=True):
                await end.drop()

    @asynccontextmanager
    async def serve(self, options: Options) -> AsyncGenerator[Listening, None]:
        server = await self._node.ask("serve", **_described(options))
        listening = Listening(server["port"], options.tls)
        ends: list[WsEnd] = []

        async def accept() -> None:
            ends.append(WsEnd(self._node, await self._node.ask("accept", id=server["id"])))
            await listening.hold(ends[0])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            try:
                yield listening
                for end in ends:
                    await end.close(1000, "")
            finally:
                with anyio.CancelScope(shield=True):
                    await self._node.ask("stop", id=server["id"])
                listening.over.set()
                tasks.cancel_scope.cancel()


def _described(options: Options) -> dict[str, Any]:
    tls, reject, deflate = options.tls, options.reject, options.compression
    described = {
        "subprotocols": list(options.subprotocols),
        "headers": list(options.headers),
        "compression": asdict(deflate) if deflate else None,
        "max_size": options.max_size,
        "tls": None,
        "reject": None,
    }
    if tls is not None:
        # The contexts are for Python only.
        described["tls"] = {
            "certificate": tls.certificate,
            "key": tls.key,
            "authority": tls.authority,
        }
    if reject is not None:
        assert isinstance(reject.body, bytes)
        described["reject"] = {
            "status": reject.status,
            "headers": list(reject.headers),
            "body": reject.body.decode(),
        }
    return {"header": HEADER.lower(), "options": described}
