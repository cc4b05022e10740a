"""Fails on a skipped test that .ci/skips does not list; prints the totals of the test run."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

ALLOWED = Path(__file__).with_name("skips")


def allowed_skips() -> list[str]:
    patterns = []
    for number, line in enumerate(ALLOWED.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = line.partition(" # ")
        if not reason.strip():
            sys.exit(f"{ALLOWED.name}, line {number}: expected 'test # reason'")
        patterns.append(pattern.strip())
    return patterns


def matches(pattern: str, test: str) -> bool:
    # Not fnmatch: the brackets of parameters are meant as they are.
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), test) is not None


def main(report: Path) -> int:
    patterns = allowed_skips()
    passed = failed = skipped = refused = 0
    for case in ElementTree.parse(report).iter("testcase"):
        # A module that is skipped as a whole has its name alone.
        test = "::".join(filter(None, [case.get("classname"), case.get("name")]))
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif (skip := case.find("skipped")) is not None:
            skipped += 1
            if not any(matches(pattern, test) for pattern in patterns):
                refused += 1
                print(f"skipped, and not in .ci/skips: {test}: {skip.get('message')}")
        else:
            passed += 1
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if refused or failed or not passed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="pytest's junit XML")
    sys.exit(main(parser.parse_args().report))
