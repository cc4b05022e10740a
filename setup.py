"""Builds what is in C, where a compiler is; all else is in pyproject.toml.

ASYNCWEBSOCKETS_NATIVE=0 leaves it out, =1 makes a build without it an error.
"""

from __future__ import annotations

import os
import sys
import sysconfig

from setuptools import Extension, setup

choice = os.environ.get("ASYNCWEBSOCKETS_NATIVE", "")
if choice not in ("", "0", "1"):
    sys.exit(f"ASYNCWEBSOCKETS_NATIVE: expected 0, 1 or nothing, got {choice!r}")

# It counts on the GIL, and in PyPy it would be slower than Python.
fits = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

native = [
    Extension(
        f"asyncwebsockets.{name}",
        [f"asyncwebsockets/{name}.c"],
        depends=["asyncwebsockets/_native.h"],
        extra_compile_args=[] if sys.platform == "win32" else ["-std=c11", "-Wextra"],
        optional=choice != "1",
    )
    for name in ("_native", "_nativeloop")
]

setup(ext_modules=native if choice == "1" or (fits and choice != "0") else [])
