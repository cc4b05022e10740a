"""That the benchmarks work: each race once, with next to nothing in it, and nothing timed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import trustme

if sys.platform != "linux":
    pytest.skip("the benchmarks need epoll and what Linux counts", allow_module_level=True)

from benchmarks.cases import CASES, PEERS, TARGETS, Entry
from benchmarks.load import Link, LoadError, Traffic, frame
from benchmarks.race import Ground, run
from benchmarks.report import describe, page, write
from benchmarks.subject import ROOT, SubjectError

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.cases import Case

NEEDED = [
    *("aiohttp", "granian", "httptools", "httpx_ws", "hypercorn", "matplotlib", "picows"),
    *("trio_websocket", "uvicorn", "uvloop", "websockets"),
]


@pytest.fixture(autouse=True)
def installed() -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"the dependency group bench is not installed, run `make venv`: {missing}"
        )


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    certificate = tmp_path_factory.mktemp("benchmarks") / "certificate.pem"
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    return Ground(str(certificate), seconds=0, most=2)


def pairs() -> list[Any]:
    """One of ours and one peer for each case, others in each."""
    chosen = []
    for number, case in enumerate(CASES):
        for ours in (True, False):
            entries = [entry for entry in case.entries if entry.peer.ours is ours]
            entry = entries[number % len(entries)]
            chosen.append(pytest.param(case, entry, id=f"{case.name}-{entry.name}"))
    return chosen


@pytest.mark.parametrize(("case", "entry"), pairs())
def test_race(case: Case, entry: Entry, ground: Ground) -> None:
    if case.kind == "memory":
        # A hundred connections may well fit into what the process has already.
        assert run(case, entry, replace(ground, most=500)).memory > 0
    else:
        sample = run(case, entry, ground)
        assert min(sample.cpu, sample.load, sample.rate, sample.p50) > 0
        assert sample.p50 <= sample.p99


def test_server_that_does_not_compress(ground: Ground) -> None:
    case = replace(CASES[0], deflate="takeover")
    with pytest.raises(SubjectError, match="expected permessage-deflate to be granted"):
        run(case, Entry("picows:asyncio"), ground)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (frame(b"other", masked=False), "got b'other'"),
        (frame(b"abc", masked=False) + b"\x82", "expected nothing more"),
        (frame(b"abc", masked=False, compressed=True), "expected compression to be False"),
        (frame(b"abc", masked=False)[:-1], "has closed the connection"),
    ],
)
def test_server_that_answers_otherwise(answer: bytes, error: str) -> None:
    traffic = Traffic(b"abc", [frame(b"abc", masked=True)], 1, 5, 1)
    near, far = socket.socketpair()
    with near, far:
        far.send(answer)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(LoadError, match=error):
            Link(near, traffic).check(traffic, deflated=False)


def test_targets_are_raced_for() -> None:
    entries = {case.name: {entry.name for entry in case.entries} for case in CASES}
    for target in TARGETS:
        compared = {name for name, _ in (*target.must, *target.aim)}
        assert {target.ours, *compared} <= entries[target.case], target.title
    assert {entry.partition(":")[0] for case in entries.values() for entry in case} == set(PEERS)


def results() -> dict[str, Any]:
    """Two rounds of everything, in which the peers need twice as much as we."""
    made = describe(rounds=2, seconds=0)
    for case in CASES:
        made["cases"][case.name] = {
            entry.name: [
                {"cpu": cpu, "memory": cpu * 2048, "load": 1, "rate": 10, "p50": 1, "p99": 2}
                for cpu in ((3, 4) if entry.peer.ours else (6, 8))
            ]
            for entry in case.entries
        }
    return made


def test_page(tmp_path: Path) -> None:
    made = results()
    write(made, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert page(json.loads((tmp_path / "benchmarks.json").read_text())) == text
    for case in CASES:
        assert f"### {case.title}\n" in text
    # 7 µs are 3.5 on the median, half of each peer's.
    assert "| picows, callbacks | uvloop | 7.00 | 2.00 | 10 | 1.00 | 2.00 | 1.00 |" in text
    assert "| 100 × 1, 128 B, uvloop | 0.75 of aiohttp, 1.1 of picows, callbacks" in text
    assert "| 0.50, 0.50 | met | 1 of picows, callbacks | 0.50 | met |" in text
    assert "| 64 in flight, 128 B, uvloop | 0.35 of picows, callbacks | 0.50 | **missed** |" in text
    assert "| 10 KiB | 7.0 KiB | met | 6 KiB | 7.0 KiB | **missed** |" in text
    assert "our endpoint adds -3.50 to the bare application's 7.00, 0.50 of it" in text
    ElementTree.parse(tmp_path / "benchmarks.svg")


def test_page_of_one_case() -> None:
    made = results()
    made["cases"] = {"16k": {"picows:uvloop": made["cases"]["16k"]["picows:uvloop"]}}
    text = page(made)
    assert "| picows, callbacks | uvloop | 7.00 |  | 10 | 1.00 | 2.00 | 1.00 |" in text
    assert "met |" not in text


def test_command(tmp_path: Path) -> None:
    core = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--case", "ping-pong", "--peer", "ours"),
            *("--loop", "asyncio", "--rounds", "2", "--seconds", "0", "--cores", core, core),
            *("--output", str(tmp_path)),
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "| asyncwebsockets | asyncio | **" in done.stdout
    made = json.loads((tmp_path / "benchmarks.json").read_text())
    assert len(made["cases"]["ping-pong"]["ours:asyncio"]) == 2
