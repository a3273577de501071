"""How long it takes before anything can be done: imports, and commands that need no model, in fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BASELINE = "import torch"
PUBLIC = "import vtc; [getattr(vtc, name) for name in vtc.__all__]"
#: What is shown -> arguments of Python, and the exit status that they end with.
STARTS: dict[str, tuple[tuple[str, ...], int]] = {
    "python alone": (("-c", "pass"), 0),
    BASELINE: (("-c", "import torch"), 0),
    "import vtc": (("-c", "import vtc"), 0),
    "import vtc.api": (("-c", "import vtc.api"), 0),
    "every public name": (("-c", PUBLIC), 0),
    "vtc --version": (("-m", "vtc", "--version"), 0),
    "vtc --help": (("-m", "vtc", "--help"), 0),
    "vtc methods": (("-m", "vtc", "methods"), 0),
    "vtc eval --methods divprun": (("-m", "vtc", "eval", "--methods", "divprun"), 2),
}
COLUMNS = {"start": "start", "min": "min", "median": "median", "over_torch": "over import torch"}


def measure(
    starts: Mapping[str, tuple[Sequence[str], int]],
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Seconds of every start by round, one after the other in each, after a round that fills the disk's cache.

    Args:
        starts: as STARTS. progress: called with (processes that have ended, all).

    Raises:
        RuntimeError: one of them ends otherwise than it should.
    """
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    total = (rounds + 1) * len(starts)
    for number in range(total):
        name = list(starts)[number % len(starts)]
        arguments, status = starts[name]
        began = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        took = time.perf_counter() - began
        if done.returncode != status:
            raise RuntimeError(f"{name} ended with {done.returncode}, not {status}: {done.stderr.strip()[-500:]}")
        if number >= len(starts):
            seconds[name].append(took)
        progress(number + 1, total)
    return seconds


def rows(seconds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Milliseconds by start; `over_torch` is between the minima, which other processes disturb least."""
    least = {name: min(values) for name, values in seconds.items()}
    return [
        {
            "start": name,
            "min": round(1000 * least[name]),
            "median": round(1000 * statistics.median(values)),
            "over_torch": round(1000 * (least[name] - least[BASELINE])) if least[name] > least[BASELINE] else "",
        }
        for name, values in seconds.items()
    ]


def cells(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What the table shows."""
    return [[str(row[column]) for column in COLUMNS] for row in found]
