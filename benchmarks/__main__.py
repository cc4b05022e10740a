"""Races this library with its peers: ``python -m benchmarks``, or ``make bench``.

A run of everything writes the page in the documentation, its plot, and what it was made of.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import trustme

from .cases import CASES, PEERS, Entry
from .race import Ground, as_dict, raise_limits, run
from .report import describe, table, write
from .subject import ROOT, SubjectError

DOCS = ROOT / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--case", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--peer", nargs="+", choices=list(PEERS))
    parser.add_argument("--loop", nargs="+", choices=["asyncio", "uvloop", "trio", "none"])
    parser.add_argument("--rounds", type=int, default=5, help="each runs all in turn (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.4, help="of one measurement (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="one round, of half the time")
    parser.add_argument("--cores", type=int, nargs=2, help="for what is measured and for the load")
    parser.add_argument("--output", type=Path, help="where to write the page")
    parser.add_argument(
        "--page", action="store_true", help="write the page again from its figures, run nothing"
    )
    chosen = parser.parse_args()
    if chosen.page:
        write(json.loads((DOCS / "benchmarks.json").read_text()), chosen.output or DOCS)
        return 0

    rounds, seconds = (1, chosen.seconds / 2) if chosen.quick else (chosen.rounds, chosen.seconds)
    cores = chosen.cores or sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("two cores are needed, one for what is measured and one for the load")
    core, load_core = cores
    everything = not (chosen.quick or chosen.case or chosen.peer or chosen.loop)
    output = chosen.output or (DOCS if everything else None)
    os.sched_setaffinity(0, {load_core})
    raise_limits()

    failed = False
    results = describe(rounds, seconds)
    with tempfile.TemporaryDirectory() as directory:
        certificate = Path(directory, "certificate.pem")
        issued = trustme.CA().issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
        ground = Ground(str(certificate), seconds, core)
        for case in CASES:
            entries = [
                entry
                for entry in case.entries
                if entry.name.partition(":")[0] in (chosen.peer or PEERS)
                and entry.loop in (chosen.loop or entry.loop)
            ]
            if case.name not in (chosen.case or case.name) or not entries:
                continue
            print(f"\n{case.title}", flush=True)
            samples: dict[str, list[dict[str, float]]] = {entry.name: [] for entry in entries}
            for number in range(min(rounds, case.most_rounds or rounds)):
                for name in list(samples):
                    if sys.stderr.isatty():
                        print(f"\r{number + 1} {name:50}", end="\r", file=sys.stderr)
                    try:
                        samples[name].append(as_dict(run(case, Entry(name), ground)))
                    except SubjectError as exc:
                        # The others go on without it.
                        failed = True
                        del samples[name]
                        print(f"{case.name} {name}: {exc}", file=sys.stderr)
            results["cases"][case.name] = samples
            print("\n".join(table(case, samples)), flush=True)
    if output is not None:
        write(results, output)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
