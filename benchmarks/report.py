"""Figures to tables, the page and the plot."""

from __future__ import annotations

import json
import os
import platform
import re
import ssl
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from asyncwebsockets.codec import IMPLEMENTATION

from .cases import CASES, PEERS, TARGETS, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .cases import Case, Target

    Samples = dict[str, list[dict[str, float]]]

PACKAGES = [
    "aiofastnet",
    "aiohttp",
    "anyio",
    "granian",
    "h11",
    "httptools",
    "httpx-ws",
    "hypercorn",
    "picows",
    "trio",
    "trio-websocket",
    "uvicorn",
    "uvloop",
    "websockets",
    "wsproto",
]

#: What the plot shows.
PLOTTED = ["100x1", "1x64", "16k", "tls-16k", "deflate", "client-50x1", "broadcast", "asgi-100x1"]

INTRODUCTION = """\
# Benchmarks

Written by `make bench`, which races the library with its peers and writes this page; the figures
are in [benchmarks.json](benchmarks.json). `make bench BENCH_ARGS="--case 100x1 --quick"` runs one
case and writes nothing; `BENCH_ARGS=--help` lists what there is.

{machine}

{versions}

![CPU time per message](benchmarks.svg)

## Targets

Shares of the CPU time a message that the peer needs in the same race, on the same loop.

{targets}

## How it is measured

- What is measured runs alone in a fresh process on one core, the load on another. All peers of a
  case run in turn, {rounds} rounds of {seconds:g} s each after a warm-up; a figure is the median of
  the rounds, and a ratio the median of each round's ratio.
- **CPU** is what the kernel counted for all threads of the process and its children, system calls
  included, per message: a message is received and sent once. On loopback whoever sends also does
  the receiver's share of TCP, so that a system call of `send` is most of a small message.
- **Latency** is from sending to the last byte of the answer. With more than one connection the
  server is busy all the time, and latency is a queue's; ping-pong shows a single message's.
- **Load** is what the load itself needed per message, most of it the kernel's: it is plain sockets
  and one epoll, with frames made beforehand, that counts bytes. It checks one message of each
  server byte by byte before it counts. It waits for all answers to what it sent at once, then
  sends again.
- **No library** is the floor: one thread that waits for a socket with epoll, receives, and sends
  frames made beforehand, without a look at what came. No server can be cheaper.
- Everybody has the same: no compression unless the case is about it, 16 MiB for a message, no
  keepalive except for memory, no access log, uvicorn with httptools, each server one process with
  the settings its documentation recommends. permessage-deflate is left at each peer's own level
  (aiohttp: 1, window 15, memory level 8; websockets: 6, 12 and 5), and ours is set to the same.
- A handler is what one would write: `async for` and `send`. picows has callbacks, which do less:
  they cannot wait, for a slow client or anything else.
- What the library promises is in force: a fair share for other tasks, prompt cancellation, limits,
  backpressure.

## Cases

CPU, load and latency in microseconds; × is the CPU in multiples of ours on the same loop.
"""


def describe(rounds: int, seconds: float) -> dict[str, Any]:
    """Return what there is to know of the run, without its figures."""
    return {
        "date": date.today().isoformat(),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            # What follows the number names a build, not the kernel.
            "kernel": f"{platform.system()} {re.match('[0-9.]*', platform.release())[0]}",  # type: ignore[index]
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "openssl": ssl.OPENSSL_VERSION,
        },
        "codec": IMPLEMENTATION,
        "versions": {name: version(name) for name in PACKAGES},
        "rounds": rounds,
        "seconds": seconds,
        "cases": {},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _median(samples: Sequence[dict[str, float]], name: str) -> float:
    return median(sample.get(name, 0) for sample in samples)


def _ratio(
    ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], name: str
) -> float:
    """Return the median of what ours is in terms of theirs, round by round."""
    return median(a[name] / b[name] for a, b in zip(ours, theirs, strict=True))


def _reference(entry: Entry, samples: Samples) -> str | None:
    """Return the first of ours on the same loop."""
    for name in samples:
        if Entry(name).peer.ours and Entry(name).loop == entry.loop:
            return name
    return None


def table(case: Case, samples: Samples) -> list[str]:
    """Return the lines of a case's table."""
    memory = case.kind == "memory"
    key = "memory" if memory else "cpu"
    columns = ["KiB", "×"] if memory else ["CPU", "×", "messages/s", "p50", "p99", "load"]
    if case.kind == "handshakes":
        columns[2] = "handshakes/s"
    lines = [f"| | loop | {' | '.join(columns)} |", "|---" * 2 + "|--:" * len(columns) + "|"]
    for name, taken in samples.items():
        entry = Entry(name)
        reference = _reference(entry, samples)
        ratio = f"{_ratio(taken, samples[reference], key):.2f}" if reference else ""
        if memory:
            cells = [f"{_median(taken, key) / 1024:.1f}", ratio]
        else:
            cells = [_number(_median(taken, "cpu")), ratio, f"{_median(taken, 'rate'):,.0f}"]
            cells += [_number(_median(taken, column)) for column in ("p50", "p99", "load")]
        if reference == name:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {entry.peer.title} | {entry.loop} | {' | '.join(cells)} |")
    return lines


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _shares(
    shares: Sequence[tuple[str, float]], ours: str, samples: Samples
) -> tuple[str, str, bool | None]:
    """Return what was asked for, what came of it, and whether that is enough."""
    asked, found, enough = [], [], True
    for name, most in shares:
        if name not in samples:
            return "", "", None
        share = _ratio(samples[ours], samples[name], "cpu")
        title = f"{PEERS[name.partition(':')[0]].title}"
        asked.append(f"{most:g} of {title}")
        found.append(f"{share:.2f}")
        enough = enough and share <= most
    return ", ".join(asked), ", ".join(found), enough if shares else None


_VERDICT = {True: "met", False: "**missed**", None: ""}


def _row(target: Target, samples: Samples) -> str:
    ours = samples[target.ours]
    if target.most is not None:
        found = _median(ours, "memory")
        cells = []
        for most in target.most:
            cells += [f"{most // 1024} KiB", f"{found / 1024:.1f} KiB", _VERDICT[found <= most]]
    else:
        must, aim = (_shares(shares, target.ours, samples) for shares in (target.must, target.aim))
        cells = [*must[:2], _VERDICT[must[2]], *aim[:2], _VERDICT[aim[2]]]
    return f"| {target.title} | {' | '.join(cells)} |"


def targets(cases: dict[str, Samples]) -> list[str]:
    """Return the lines of the table of targets, as far as they were raced for."""
    lines = ["| | must | is | | aim | is | |", "|---" * 7 + "|"]
    lines += [
        _row(target, cases[target.case])
        for target in TARGETS
        if target.ours in cases.get(target.case, ())
    ]
    return lines


def overheads(samples: Samples) -> Iterator[str]:
    """Yield what our endpoint adds to a bare application, where both were raced."""
    for name, taken in samples.items():
        bare = name.replace("+ours", "")
        if bare != name and bare in samples:
            added = median(a["cpu"] - b["cpu"] for a, b in zip(taken, samples[bare], strict=True))
            ratio = _ratio(taken, samples[bare], "cpu")
            entry = Entry(bare)
            yield (
                f"- {entry.peer.title}, {entry.loop}: our endpoint adds {_number(added)} to the"
                f" bare application's {_number(_median(samples[bare], 'cpu'))}, {ratio:.2f} of it."
            )


def page(results: dict[str, Any]) -> str:
    """Return the page in the documentation."""
    machine = results["machine"]
    about = (
        f"Measured on {results['date']}: {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['kernel']}, {machine['python']}, {machine['openssl']};"
        f" {results['codec']} codec."
    )
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    parts = [
        INTRODUCTION.format(
            machine=about,
            versions=f"Versions: {versions}.",
            targets="\n".join(targets(results["cases"])),
            rounds=results["rounds"],
            seconds=results["seconds"],
        )
    ]
    for case in CASES:
        if samples := results["cases"].get(case.name):
            parts.append(f"### {case.title}\n")
            if case.note:
                parts.append(f"{case.note}\n")
            parts.append("\n".join(table(case, samples)) + "\n")
            if added := "\n".join(overheads(samples)):
                parts.append(f"{added}\n")
    return "\n".join(parts)


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw the CPU time per message."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cases = [case for case in CASES if case.name in PLOTTED and case.name in results["cases"]]
    # The same figures make the same file, with its text as text.
    mpl.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 8})
    rows = max(1, (len(cases) + 1) // 2)
    figure = Figure(figsize=(10, 4 * rows), layout="constrained")
    figure.suptitle("CPU time per message in microseconds: less is better")
    for axes, case in zip(figure.subplots(rows, 2).flat, cases, strict=False):
        samples: Samples = results["cases"][case.name]
        entries = [Entry(name) for name in samples]
        labels = [entry.name.replace(":", " · ") for entry in entries]
        times = [_median(samples[entry.name], "cpu") for entry in entries]
        colours = ["tab:orange" if entry.peer.ours else "tab:gray" for entry in entries]
        bars = axes.barh(labels, times, color=colours)
        axes.bar_label(bars, [_number(time) for time in times], padding=2)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.set_title(case.title, fontsize="medium")
    figure.savefig(path, format="svg", metadata={"Date": None})


def write(results: dict[str, Any], directory: Path) -> None:
    """Write the page, its plot and its figures."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "benchmarks.md").write_text(page(results))
    plot(results, directory / "benchmarks.svg")
