"""Runs a case with one of its entries."""

from __future__ import annotations

import json
import random
import resource
import socket
import ssl
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from . import load
from .cases import PURE
from .subject import free_port, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .cases import Case, Entry
    from .load import Link, Run
    from .subject import Subject


@dataclass(frozen=True)
class Sample:
    """What one run came to: times in microseconds, per message or handshake, and bytes."""

    cpu: float = 0
    load: float = 0
    rate: float = 0
    p50: float = 0
    p99: float = 0
    memory: float = 0


@dataclass(frozen=True)
class Ground:
    """Where and how long it is run.

    Attributes:
        certificate: a PEM file with its key.
        seconds: that a measurement lasts, None for one message on each connection and no more.
        core: for what is measured; the load is on another.
        most: connections at the most.
    """

    certificate: str
    seconds: float
    core: int | None = None
    most: int | None = None

    @property
    def warm_up(self) -> float:
        """The seconds before it counts."""
        return self.seconds / 4


def run(case: Case, entry: Entry, ground: Ground) -> Sample:
    """Run it once, in a process of its own."""
    connections = min(case.connections, ground.most or case.connections)
    measure = _client if case.kind == "client" else _server
    return measure(case, entry, ground, connections)


def _client(case: Case, entry: Entry, ground: Ground, connections: int) -> Sample:
    traffic = load.plain(case.size, case.in_flight, server=True)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=connections) as listener,
        ExitStack() as stack,
    ):
        # The time in which it has to come.
        listener.settimeout(load.PATIENCE)
        arguments = {
            "port": listener.getsockname()[1],
            "loop": entry.loop,
            "connections": connections,
            "in-flight": case.in_flight,
            "size": case.size,
            "variant": entry.peer.variant,
        }
        subject = stack.enter_context(_started("clients", entry, arguments, ground))
        links = []
        for _ in range(connections):
            links.append(load.accept(listener, traffic))
            stack.callback(links[-1].close)
        load.exchange(links, case.in_flight, ground.warm_up, begin=False)
        return _measured(subject, lambda: load.exchange(links, case.in_flight, ground.seconds))


def _server(case: Case, entry: Entry, ground: Ground, connections: int) -> Sample:
    port = free_port()
    arguments: dict[str, object] = {
        "port": port,
        "loop": entry.loop,
        "variant": entry.peer.variant,
        "deflate": bool(case.deflate),
        "broadcast": case.kind == "broadcast",
        "keepalive": case.kind == "memory",
        "mounted": entry.peer.mounted,
    }
    tls = None
    if case.tls:
        arguments["certificate"] = ground.certificate
        # Whom it talks to is known.
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    if case.deflate:
        traffic = load.compressed(_texts(case.size), takeover=case.deflate == "takeover")
    else:
        traffic = load.plain(case.size, case.in_flight)
    with _started("servers", entry, arguments, ground) as subject, ExitStack() as stack:

        def connect() -> Link:
            link = load.connect(port, traffic, tls)
            stack.callback(link.close)
            return link

        links = [subject.once_listening(connect)]
        links[0].check(traffic, deflated=bool(case.deflate))
        if case.kind == "handshakes":
            load.shake_hands(port, connections, ground.warm_up)
            return _measured(subject, lambda: load.shake_hands(port, connections, ground.seconds))
        if case.kind == "memory":
            # What the first connections bring about only once does not count.
            links += [connect() for _ in range(connections // 10)]
            time.sleep(ground.warm_up)
            before, rest = subject.memory(), connections - len(links)
            links += [connect() for _ in range(rest)]
            time.sleep(ground.seconds)
            return Sample(memory=(subject.memory() - before) / rest)
        links += [connect() for _ in range(connections - 1)]
        if case.kind == "broadcast":
            load.publish(links, ground.warm_up)
            return _measured(subject, lambda: load.publish(links, ground.seconds))
        load.exchange(links, case.in_flight, ground.warm_up)
        return _measured(subject, lambda: load.exchange(links, case.in_flight, ground.seconds))


def _measured(subject: Subject, go: Callable[[], Run]) -> Sample:
    load_cpu, cpu = time.process_time_ns(), subject.cpu()
    done = go()
    load_cpu, cpu = time.process_time_ns() - load_cpu, subject.cpu() - cpu
    subject.check()
    latencies = sorted(done.latencies)
    return Sample(
        cpu=cpu / done.messages / 1e3,
        load=load_cpu / done.messages / 1e3,
        rate=done.messages / done.seconds,
        p50=median(latencies) * 1e6,
        p99=latencies[int(len(latencies) * 0.99)] * 1e6,
    )


@contextmanager
def _started(
    folder: str, entry: Entry, arguments: dict[str, object], ground: Ground
) -> Iterator[Subject]:
    command = []
    for name, value in arguments.items():
        if value is True:
            command.append(f"--{name}")
        elif value not in (False, ""):
            command.append(f"--{name}={value}")
    environment = PURE if entry.peer.pure else {}
    module = f"{folder}.{entry.peer.module}"
    with running(module, command, environment, ground.core) as subject:
        yield subject


def _texts(size: int) -> list[bytes]:
    """JSON as an application might send it: 32 texts, which fill the largest window twice."""
    chance = random.Random(0)
    texts = []
    for number in range(32):
        records: list[dict[str, object]] = []
        while len(json.dumps(records)) < size:
            records.append(
                {
                    "id": chance.getrandbits(32),
                    "symbol": chance.choice(["AAPL", "MSFT", "NVDA", "GOOG"]),
                    "price": round(chance.uniform(10, 900), 2),
                    "side": chance.choice(["buy", "sell"]),
                    "sequence": number,
                }
            )
        texts.append(json.dumps(records).encode()[:size])
    return texts


def raise_limits() -> None:
    """Allow as many descriptors as may be had: 5,000 connections take more than is usual."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def as_dict(sample: Sample) -> dict[str, float]:
    """Return what is not zero, for JSON."""
    return {name: round(value, 3) for name, value in asdict(sample).items() if value}
