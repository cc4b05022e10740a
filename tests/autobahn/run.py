"""Runs the Autobahn suite against the echo peers and judges what it reports.

A run is a role and how it is played, such as server-asyncio; all of them without an argument. The
library's whole runs write results.md anew, and those of asgi_bridge results-bridge.md.

Every case must be OK, in what it did and in how it closed. Under hypercorn a handler cannot do
better than the server: each case must be OK, or what hypercorn-bare makes of it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import platform
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from anyio.abc import Process

HERE = Path(__file__).resolve().parent
SUITE = HERE.parent.parent / ".autobahn"
PYTHON27 = SUITE / "python" / "bin" / "python"
REPORTS = SUITE / "reports"

BACKENDS = ("asyncio", "uvloop", "trio")
BARE, MOUNTED = "hypercorn-bare", "hypercorn-mounted"
LIBRARY = [f"{role}-{backend}" for role in ("server", "client") for backend in BACKENDS]
BRIDGE = [*(f"host-{backend}" for backend in BACKENDS), BARE, MOUNTED]
RUNS = [*LIBRARY, *BRIDGE]
PEERS = {
    "server": "server.py",
    "client": "client.py",
    "host": "host.py",
    "hypercorn": "under_hypercorn.py",
}
CASES = 517
# The suite gives these no other result, whatever the peer does: the RFC leaves it open.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}

# In some cases it is a matter of timing what hypercorn does: where the handler fares worse, it is
# asked that many times more at most whether it would not have done the same.
REPEATS = 5

PARALLEL_RUNS = 2
START_SECONDS = 30
# Twice what it takes here, for the sake of slow machines.
RUN_SECONDS = 30 * 60

# Run by Python 2.7. By itself the suite listens on every interface.
WSTEST = """
from autobahntestsuite import fuzzing, wstest
listen = fuzzing.listenWS
fuzzing.listenWS = lambda *args: listen(*args, interface="127.0.0.1")
wstest.run()
"""
DESCRIBE = """
import json, sys
import autobahn, autobahntestsuite
from autobahntestsuite import case
from autobahntestsuite.caseset import CaseSet
cases = CaseSet(
    case.CaseSetname, case.CaseBasename, case.Cases, case.CaseCategories, case.CaseSubCategories
)
print(json.dumps({
    "version": "%s (autobahn %s)" % (autobahntestsuite.version, autobahn.version),
    "cases": cases.parseSpecCases({"cases": sys.argv[1:]}),
    "sections": case.CaseCategories,
}))
"""


class RunFailed(Exception):
    """A run did not get as far as results."""


@dataclass(frozen=True)
class Suite:
    """What the suite says about itself."""

    version: str
    cases: Sequence[str]
    sections: dict[str, str]

    @classmethod
    def describe(cls, patterns: Sequence[str]) -> Suite:
        command = [str(PYTHON27), "-W", "ignore", "-c", DESCRIBE, *patterns]
        return cls(**json.loads(subprocess.check_output(command)))


@dataclass(frozen=True)
class Result:
    """One case of a run, in the suite's words."""

    case: str
    behavior: str
    behavior_close: str
    why: str = field(default="", compare=False)

    @property
    def grade(self) -> str:
        return self.behavior if self.behavior != "OK" else self.behavior_close

    @property
    def passed(self) -> bool:
        words = {self.behavior, self.behavior_close}
        return words == {"OK"} or (words == {"INFORMATIONAL"} and self.case in INFORMATIONAL)


Outcome = dict[str, list[Result]]


@dataclass(frozen=True)
class Page:
    """A page of results."""

    path: Path
    title: str
    runs: Sequence[str]
    packages: Sequence[str]
    intro: str = ""


PAGES = [
    Page(
        HERE / "results.md",
        "Autobahn results",
        LIBRARY,
        ("asyncwebsockets", "anyio", "wsproto", "trio", "uvloop"),
    ),
    Page(
        HERE / "results-bridge.md",
        "Autobahn results of asgi_bridge",
        BRIDGE,
        ("asyncwebsockets", "anyio", "wsproto", "trio", "uvloop", "hypercorn"),
        f"""\
- host: an ASGI echo application on the library's own sockets, by `serve_app`
- hypercorn, bare: the same application under hypercorn, for comparison
- hypercorn, mounted: the library's echo handler as a `WebsocketApp` under hypercorn

The frames are hypercorn's, so a mounted handler passes where it is OK or does what the bare
application does. In front of a frame that breaks the protocol, timing decides whether hypercorn
still delivers a message: where a handler fares worse, the bare application is tried again,
{REPEATS} times at most.

""",
    ),
]


@asynccontextmanager
async def started(
    command: Sequence[str | Path], *, stdout: int | IO[Any], stderr: int | IO[Any]
) -> AsyncIterator[Process]:
    process = await anyio.open_process(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
            with anyio.move_on_after(5):
                await process.wait()
            # Kills what is still there.
            await process.aclose()


def wstest(mode: str, directory: Path, spec: dict[str, Any]) -> list[str | Path]:
    path = directory / "spec.json"
    path.write_text(json.dumps({"outdir": str(directory), **spec}))
    return [PYTHON27, "-W", "ignore", "-c", WSTEST, "-m", mode, "-s", path, "-u", "0"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def wait_until_listening(process: Process, port: int) -> None:
    while process.returncode is None:
        try:
            stream = await anyio.connect_tcp("127.0.0.1", port)
        except OSError:
            await anyio.sleep(0.1)
        else:
            await stream.aclose()
            return
    raise RunFailed("the suite's server ended at once")


async def test_server(run: str, peer: list[str | Path], directory: Path, cases: list[str]) -> None:
    async with AsyncExitStack() as stack:
        log = stack.enter_context((directory / "suite.log").open("wb"))
        errors = stack.enter_context((directory / "peer.log").open("wb"))
        server = await stack.enter_async_context(
            started(peer, stdout=subprocess.PIPE, stderr=errors)
        )
        assert server.stdout is not None
        with anyio.fail_after(START_SECONDS):
            try:
                line = await BufferedByteReceiveStream(server.stdout).receive_until(b"\n", 100)
            except anyio.IncompleteRead:
                raise RunFailed("the server under test did not start") from None
        spec = {"servers": [{"agent": run, "url": f"ws://127.0.0.1:{int(line)}"}], "cases": cases}
        suite = await stack.enter_async_context(
            started(wstest("fuzzingclient", directory, spec), stdout=log, stderr=log)
        )
        if await suite.wait():
            raise RunFailed("the suite failed")


async def test_client(run: str, peer: list[str | Path], directory: Path, cases: list[str]) -> None:
    async with AsyncExitStack() as stack:
        log = stack.enter_context((directory / "suite.log").open("wb"))
        errors = stack.enter_context((directory / "peer.log").open("wb"))
        url = f"ws://127.0.0.1:{(port := free_port())}"
        spec = {"url": url, "cases": cases}
        suite = await stack.enter_async_context(
            started(wstest("fuzzingserver", directory, spec), stdout=log, stderr=log)
        )
        with anyio.fail_after(START_SECONDS):
            await wait_until_listening(suite, port)
        client = await stack.enter_async_context(
            started([*peer, url, run], stdout=errors, stderr=errors)
        )
        if await client.wait():
            raise RunFailed("the client under test failed")


async def test(run: str, peers: Path, suite: Suite, suffix: str = "") -> list[Result]:
    directory = REPORTS / f"{run}{suffix}"
    directory.mkdir(parents=True, exist_ok=True)
    with (REPORTS / f"{run}{suffix}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed("it is under way already") from None
        for old in directory.iterdir():
            old.unlink()
        await test_peer(run, peers, directory, suite)
        return read_results(run, directory, suite)


async def test_peer(run: str, peers: Path, directory: Path, suite: Suite) -> None:
    role, argument = run.split("-")
    peer: list[str | Path] = [sys.executable, peers / PEERS[role], argument]
    try:
        with anyio.fail_after(RUN_SECONDS):
            test_role = test_client if role == "client" else test_server
            await test_role(run, peer, directory, list(suite.cases))
    except TimeoutError:
        raise RunFailed("it took too long") from None
    if "Traceback" in (directory / "peer.log").read_text():
        raise RunFailed("the peer under test wrote a traceback")


def read_results(run: str, directory: Path, suite: Suite) -> list[Result]:
    index = directory / "index.json"
    reports = json.loads(index.read_text()).get(run, {}) if index.exists() else {}
    if missing := [case for case in suite.cases if case not in reports]:
        raise RunFailed(f"the suite has no result of {len(missing)} cases, {missing[0]} the first")
    results = []
    for case in suite.cases:
        report = reports[case]
        result = Result(case, report["behavior"], report["behaviorClose"])
        if not result.passed:
            detail = json.loads((directory / report["reportfile"]).read_text())
            why = detail["result" if result.behavior != "OK" else "resultClose"]
            result = replace(result, why=" ".join(why.split()))
        results.append(result)
    return results


async def repeat_bare(outcome: Outcome, peers: Path, suite: Suite) -> list[Result]:
    """Try the bare application again in the cases in which the mounted handler fares worse."""
    again: list[Result] = []
    for _ in range(REPEATS):
        cases = [result.case for result in failures(MOUNTED, outcome, again)]
        if not cases:
            break
        print(f"{BARE}: again {', '.join(cases)} ...", flush=True)
        again += await test(BARE, peers, replace(suite, cases=cases), "-again")
    return again


def failures(run: str, outcome: Outcome, again: Sequence[Result]) -> list[Result]:
    """What a run has not done as it must; again is what the bare application did when repeated."""
    if run == BARE:
        return []
    excused = {*outcome.get(BARE, ()), *again} if run == MOUNTED else set()
    return [result for result in outcome[run] if not result.passed and result not in excused]


def count(results: Sequence[Result]) -> str:
    grades = Counter(result.grade for result in results)
    return ", ".join(f"{grades[grade]} {grade}" for grade in sorted(grades, key=grade_order))


def grade_order(grade: str) -> tuple[bool, bool, str]:
    return grade != "OK", grade != "INFORMATIONAL", grade


def table(page: Page, suite: Suite, outcome: Outcome, again: Sequence[Result]) -> str:
    python = f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"
    versions = ", ".join(f"{package} {version(package)}" for package in page.packages)
    lines = [
        f"# {page.title}",
        "",
        "Written by `make conformance-all`, from the reports of the real suite, with compression.",
        "",
        *page.intro.splitlines(),
        f"- autobahntestsuite {suite.version}, {len(suite.cases)} cases",
        f"- {versions}, {python}",
        "",
        f"| section | {' | '.join(run.replace('-', ', ') for run in page.runs)} |",
        f"|---|{'---|' * len(page.runs)}",
    ]
    for section in sorted({int(case.split(".")[0]) for case in suite.cases}):
        cells = [
            count([result for result in outcome[run] if result.case.startswith(f"{section}.")])
            for run in page.runs
        ]
        lines.append(f"| {section} {suite.sections[str(section)]} | {' | '.join(cells)} |")
    informational = ", ".join(sorted(INFORMATIONAL, key=case_order))
    totals = [count(outcome[run]) for run in page.runs]
    lines += [
        f"| **all** | {' | '.join(totals)} |",
        "",
        f"INFORMATIONAL are {informational}: the RFC leaves open what they try, and the suite",
        "gives them no other result.",
        "",
        "## Not OK",
        "",
    ]
    tries: list[tuple[str, Sequence[Result]]] = [(run, outcome[run]) for run in page.runs]
    if BARE in page.runs:
        tries.append((f"{BARE}-again", again))
    others = [(run, result) for run, results in tries for result in results if not result.passed]
    others.sort(key=lambda other: case_order(other[1].case))
    if others:
        lines += ["| case | run | behavior | close | the suite says |", "|---|---|---|---|---|"]
    lines += [
        f"| {result.case} | {run.replace('-', ', ')} | {result.behavior} | {result.behavior_close} "
        f"| {result.why} |"
        for run, result in others
    ] or ["None."]
    return "\n".join(lines) + "\n"


def case_order(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


async def main(runs: Sequence[str], peers: Path, patterns: Sequence[str]) -> int:
    suite = Suite.describe(patterns)
    whole = list(patterns) == ["*"]
    if whole and len(suite.cases) != CASES:
        print(f"The suite has {len(suite.cases)} cases, {CASES} were expected.")
        return 1
    outcome: Outcome = {}
    again: list[Result] = []
    limiter = anyio.CapacityLimiter(PARALLEL_RUNS)

    async def run_one(run: str) -> None:
        async with limiter:
            print(f"{run}: {len(suite.cases)} cases ...", flush=True)
            try:
                outcome[run] = await test(run, peers, suite)
            except RunFailed as failure:
                print(f"{run}: {failure}; see {(REPORTS / run).relative_to(Path.cwd())}")
                return
            print(f"{run}: {count(outcome[run])}", flush=True)

    async with anyio.create_task_group() as tasks:

        async def stop_when_told() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

        tasks.start_soon(stop_when_told)
        async with anyio.create_task_group() as all_runs:
            for run in runs:
                all_runs.start_soon(run_one, run)
        if {BARE, MOUNTED} <= outcome.keys():
            try:
                again = await repeat_bare(outcome, peers, suite)
            except RunFailed as failure:
                print(f"{BARE}, again: {failure}")
        tasks.cancel_scope.cancel()

    passed = len(outcome) == len(runs)
    for run in outcome:
        for result in failures(run, outcome, again):
            passed = False
            words = f"{result.behavior}, close {result.behavior_close}"
            print(f"{run}: {result.case}: {words}: {result.why}")
    for page in PAGES:
        if whole and peers == HERE and outcome.keys() >= set(page.runs):
            page.path.write_text(table(page, suite, outcome, again))
            print(f"The table is in {page.path.relative_to(Path.cwd())}.")
    print("Autobahn: passed." if passed else "Autobahn: FAILED.")
    return 0 if passed else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="run", help=", ".join(RUNS))
    parser.add_argument("--cases", nargs="+", default=["*"], help="only these, such as '6.4.*'")
    parser.add_argument(
        "--peers", type=Path, default=HERE, help="where another library's server.py, client.py are"
    )
    args = parser.parse_args()
    peers = args.peers.resolve()
    runs = args.runs or (RUNS if peers == HERE else LIBRARY)
    if unknown := set(runs) - set(RUNS):
        parser.error(f"no such run: {', '.join(sorted(unknown))}")
    if MOUNTED in runs and BARE not in runs:
        parser.error(f"{MOUNTED} is judged by {BARE}, and only together with it")
    sys.exit(anyio.run(main, runs, peers, args.cases))
