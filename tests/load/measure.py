"""What a process holds at a moment, and whether that stays so."""

from __future__ import annotations

import gc
import os
import resource
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAGE = os.sysconf("SC_PAGE_SIZE")


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(function: Any, backend: str, *args: Any) -> Any:
    """Run an async function on asyncio, uvloop or trio."""
    if backend == "uvloop":
        return anyio.run(function, *args, backend_options={"use_uvloop": True})
    return anyio.run(function, *args, backend=backend)


def sample() -> dict[str, float]:
    """Return what this process holds: bytes, descriptors and tasks; and the seconds it has run."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return {
        "rss": pages * _PAGE,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(anyio.get_running_tasks()),
        "cpu": time.process_time(),
    }


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value that so large a part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


def growth(samples: Sequence[dict[str, float]]) -> list[str]:
    """Return in what a process has grown: not by a descriptor or task, and not by 2 % of memory.

    The first quarter of the samples is left out, while pools and caches fill.
    """
    kept = samples[len(samples) // 4 :]
    found = [
        f"{name} from {kept[0][name]:g} to {kept[-1][name]:g}"
        for name in ("descriptors", "tasks")
        if kept[-1][name] > kept[0][name]
    ]
    third = max(len(kept) // 3, 1)
    before = median(each["rss"] for each in kept[:third])
    after = median(each["rss"] for each in kept[-third:])
    if after > before * 1.02 + 2**20:
        found.append(f"resident memory from {before / 2**20:.1f} to {after / 2**20:.1f} MiB")
    return found
