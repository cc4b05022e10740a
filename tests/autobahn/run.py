"""Runs the Autobahn suite against the echo peers and judges what it reports.

A run is a role and a backend, such as server-asyncio; all six without an argument, and then the
table in results.md is written anew. Every case must be OK, in what it did and in how it closed.
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
from dataclasses import dataclass
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
TABLE = HERE / "results.md"

RUNS = [
    f"{role}-{backend}"
    for role in ("server", "client")
    for backend in ("asyncio", "uvloop", "trio")
]
CASES = 517
# The suite gives these no other result, whatever the peer does: the RFC leaves it open.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}

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
    why: str = ""

    @property
    def grade(self) -> str:
        return self.behavior if self.behavior != "OK" else self.behavior_close

    @property
    def passed(self) -> bool:
        words = {self.behavior, self.behavior_close}
        return words == {"OK"} or (words == {"INFORMATIONAL"} and self.case in INFORMATIONAL)


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


async def test(run: str, peers: Path, suite: Suite) -> list[Result]:
    directory = REPORTS / run
    directory.mkdir(parents=True, exist_ok=True)
    with (REPORTS / f"{run}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed("it is under way already") from None
        for old in directory.iterdir():
            old.unlink()
        await test_peer(run, peers, directory, suite)
        return read_results(run, directory, suite)


async def test_peer(run: str, peers: Path, directory: Path, suite: Suite) -> None:
    role, backend = run.split("-")
    peer: list[str | Path] = [sys.executable, peers / f"{role}.py", backend]
    try:
        with anyio.fail_after(RUN_SECONDS):
            test_role = test_server if role == "server" else test_client
            await test_role(run, peer, directory, list(suite.cases))
    except TimeoutError:
        raise RunFailed("it took too long") from None
    if "Traceback" in (directory / "peer.log").read_text():
        raise RunFailed("the peer under test wrote a traceback")


def read_results(run: str, directory: Path, suite: Suite) -> list[Result]:
    index = directory / "index.json"
    reports = json.loads(index.read_text()).get(run, {}) if index.exists() else {}
    results = []
    for case in suite.cases:
        if (report := reports.get(case)) is None:
            results.append(Result(case, "MISSING", "MISSING", "The suite has no result."))
            continue
        result = Result(case, report["behavior"], report["behaviorClose"])
        if not result.passed:
            detail = json.loads((directory / report["reportfile"]).read_text())
            why = detail["result" if result.behavior != "OK" else "resultClose"]
            result = Result(case, result.behavior, result.behavior_close, " ".join(why.split()))
        results.append(result)
    return results


def count(results: Sequence[Result]) -> str:
    grades = Counter(result.grade for result in results)
    return ", ".join(f"{grades[grade]} {grade}" for grade in sorted(grades, key=grade_order))


def grade_order(grade: str) -> tuple[bool, bool, str]:
    return grade != "OK", grade != "INFORMATIONAL", grade


def table(suite: Suite, outcome: dict[str, list[Result]]) -> str:
    packages = ("asyncwebsockets", "anyio", "wsproto", "trio", "uvloop")
    python = f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"
    lines = [
        "# Autobahn results",
        "",
        "Written by `make conformance-all`, from the reports of the real suite, with compression.",
        "",
        f"- autobahntestsuite {suite.version}, {len(suite.cases)} cases",
        f"- {', '.join(f'{package} {version(package)}' for package in packages)}, {python}",
        "",
        f"| section | {' | '.join(run.replace('-', ', ') for run in outcome)} |",
        f"|---|{'---|' * len(outcome)}",
    ]
    for section in sorted({int(case.split(".")[0]) for case in suite.cases}):
        cells = [
            count([result for result in results if result.case.startswith(f"{section}.")])
            for results in outcome.values()
        ]
        lines.append(f"| {section} {suite.sections[str(section)]} | {' | '.join(cells)} |")
    informational = ", ".join(sorted(INFORMATIONAL, key=case_order))
    totals = [count(results) for results in outcome.values()]
    lines += [
        f"| **all** | {' | '.join(totals)} |",
        "",
        f"INFORMATIONAL are {informational}: the RFC leaves open what they try, and the suite",
        "gives them no other result.",
        "",
        "## Not OK",
        "",
    ]
    failures = [
        f"| {result.case} | {run.replace('-', ', ')} | {result.behavior} | {result.behavior_close} "
        f"| {result.why} |"
        for run, results in outcome.items()
        for result in results
        if not result.passed
    ]
    if failures:
        lines += ["| case | run | behavior | close | the suite says |", "|---|---|---|---|---|"]
    lines += failures or ["None."]
    return "\n".join(lines) + "\n"


def case_order(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


async def main(runs: Sequence[str], peers: Path, patterns: Sequence[str]) -> int:
    suite = Suite.describe(patterns)
    whole = list(patterns) == ["*"]
    if whole and len(suite.cases) != CASES:
        print(f"The suite has {len(suite.cases)} cases, {CASES} were expected.")
        return 1
    outcome: dict[str, list[Result]] = {}
    limiter = anyio.CapacityLimiter(PARALLEL_RUNS)

    async def run_one(run: str) -> None:
        async with limiter:
            print(f"{run}: {len(suite.cases)} cases ...", flush=True)
            try:
                results = await test(run, peers, suite)
            except RunFailed as failure:
                print(f"{run}: {failure}; see {(REPORTS / run).relative_to(Path.cwd())}")
                return
            outcome[run] = results
            print(f"{run}: {count(results)}", flush=True)
            for result in results:
                if not result.passed:
                    words = f"{result.behavior}, close {result.behavior_close}"
                    print(f"  {result.case}: {words}: {result.why}")

    async with anyio.create_task_group() as tasks:

        async def stop_when_told() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

        tasks.start_soon(stop_when_told)
        async with anyio.create_task_group() as all_runs:
            for run in runs:
                all_runs.start_soon(run_one, run)
        tasks.cancel_scope.cancel()

    complete = len(outcome) == len(runs)
    if complete and whole and set(runs) == set(RUNS) and peers == HERE:
        TABLE.write_text(table(suite, {run: outcome[run] for run in RUNS}))
        print(f"The table is in {TABLE.relative_to(Path.cwd())}.")
    passed = complete and all(result.passed for run in outcome.values() for result in run)
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
    if unknown := set(args.runs) - set(RUNS):
        parser.error(f"no such run: {', '.join(sorted(unknown))}")
    sys.exit(anyio.run(main, args.runs or RUNS, args.peers.resolve(), args.cases))
