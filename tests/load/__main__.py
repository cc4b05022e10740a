"""Load tests: ``python -m tests.load {load,soak,overload,drain} --help``."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from . import scenarios
from .measure import raise_descriptor_limit, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.load", description=__doc__)
    parser.add_argument("--backend", choices=["asyncio", "uvloop", "trio"], default="uvloop")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, connections, seconds in (
        ("load", 8000, 60),
        ("overload", 1000, 15),
        ("drain", 1000, 5),
    ):
        command = commands.add_parser(name, help=getattr(scenarios, name).__doc__)
        command.add_argument("--connections", type=int, default=connections)
        command.add_argument("--seconds", type=int, default=seconds)
        if name == "overload":
            command.add_argument("--rounds", type=int, default=5, help="of these seconds")
            command.add_argument("--rate", type=int, default=1000, help="knocks a second")
            command.add_argument(
                "--slower", type=float, default=5, help="times the 99th percentile may be"
            )
    command = commands.add_parser("soak", help=scenarios.soak.__doc__)
    command.add_argument("--workers", type=int, default=50)
    command.add_argument("--rounds", type=int, default=40)
    command.add_argument("--seconds", type=int, default=30, help="of each round")
    parser.add_argument("--mark", help="nothing, but it is seen in a list of processes")
    given = parser.parse_args()
    raise_descriptor_limit()
    try:
        match given.command:
            case "load":
                run(scenarios.load, given.backend, given.backend, given.connections, given.seconds)
            case "overload":
                attack = partial(
                    scenarios.overload,
                    seconds=given.seconds / given.rounds,
                    rounds=given.rounds,
                    rate=given.rate,
                    slower=given.slower,
                )
                run(attack, given.backend, given.backend, given.connections)
            case "drain":
                run(scenarios.drain, given.backend, given.backend, given.connections, given.seconds)
            case "soak":
                arguments = (given.backend, given.workers, given.rounds, given.seconds)
                run(scenarios.soak, given.backend, *arguments)
    except Exception as exc:
        failure = exc
        # Task groups wrap it.
        while inner := getattr(failure, "exceptions", None):
            failure = inner[0]
        if not isinstance(failure, scenarios.LoadFailure):
            raise
        print(f"failed: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
