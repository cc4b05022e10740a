"""Fuzz what is in Python, guided by its coverage: Atheris, which is libFuzzer for Python.

``python -m tests.fuzz.guided TARGET [libFuzzer's options] [corpora]``
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    target = sys.argv.pop(1)
    # Whatever can be pure is to be seen here; the differential asks for the native codec by name.
    with atheris.instrument_imports(include=["asyncwebsockets", "h11", "wsproto"]):
        from .targets import TARGETS
    atheris.Setup(sys.argv, TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
