"""How time and memory of choosing grow with the number of tokens: every method that chooses before the language model.

On a CPU time is the processor's, that of all threads together, as a run of minutes is seldom alone on its machine.
Tokens are those of a clip whose frames resemble each other, 12 x 12 of width 896 each; a tenth is kept. Beside the
methods stands what many of them are made of: all products of all tokens, tile by tile, so that nothing is held.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc.engine.per_crop import select_scoped
from vtc.eval.bench.model import peak_bytes
from vtc.eval.bench.roofs import clock
from vtc.eval.bench.suites import FRAME, SIZES
from vtc.layout import single_span
from vtc.signals import SIGNALS, VisualTokens, given_signals

KEEP, SIDE, WIDTH = 0.1, math.isqrt(FRAME), 896
LIMIT = 60.0  # seconds of one method at one number of tokens
GRAM = "(all products)"
TILE = 1024  # rows of products at a time
SLOW = 5.0  # seconds; what is expected to take longer runs once, its memory being watched
UNSEEN = 0.02  # seconds; what takes less says nothing about growth


@dataclass(frozen=True)
class Point:
    """One method at one number of tokens; `peak`: bytes allocated at a time, of `features` bytes that come in."""

    method: str
    tokens: int
    seconds: float
    peak: int
    features: int


def features_of(tokens: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[N, WIDTH]: frames of SIDE x SIDE tokens, as like each other as those of a quiet scene."""
    random = torch.Generator().manual_seed(0)
    still = torch.randn(1, FRAME, WIDTH, generator=random)
    moving = torch.randn(tokens // FRAME, FRAME, WIDTH, generator=random)
    return (moving.mul_(0.7).add_(still)).view(tokens, WIDTH).to(device, dtype)


def runner(name: str, x: Tensor) -> Callable[[], Any]:
    """What chooses among x [N, D]: the first stage of a method, such as "tome(scope=frame)"; signals are random."""
    n = len(x)
    if name == GRAM:
        return partial(_all_products, x)
    method = vtc.resolve(name, keep=None if "keep=" in name else KEEP).parts()[0]
    random, sizes = torch.Generator().manual_seed(1), {"N": n, "S": n, "L": 1, "C": 1, "T": 20, "D": WIDTH}
    signals = {}
    for signal in method.requires():
        shape = [sizes.get(side, 64) for side in SIGNALS[signal].shape]
        if shape:
            signals[signal] = torch.rand(shape, generator=random).to(x.device)
    span = single_span(n, (n // FRAME, SIDE, SIDE))
    tokens = VisualTokens(x, span, torch.arange(n, device=x.device), given_signals(signals, n, x.device))
    return lambda: select_scoped(method, [tokens])[0]


def _all_products(x: Tensor) -> None:
    for part in x.split(TILE):
        part @ x.T


@torch.inference_mode()
def measure(
    names: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sequence[int] = SIZES,
    seconds: float = math.inf,
    limit: float = LIMIT,
    known: Sequence[Point] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Point]:
    """The points of each method, the products first; it goes on to more tokens while that fits in its share.

    Args:
        seconds: for everything together; each method has an equal share of what is left.
        limit: what is expected to take longer at one number of tokens, or more than half of the memory, is left out.
        known: points of an earlier run, which are not measured again.
    """
    began, wanted, there = time.perf_counter(), [GRAM, *names], {(point.method, point.tokens): point for point in known}
    x, room = features_of(FRAME, device, dtype), memory(device) / 2
    for number, name in enumerate(wanted):
        share = (began + seconds - time.perf_counter()) / (len(wanted) - number)
        start, points = time.perf_counter(), list[Point]()
        for size in sizes:
            expected, peak = ahead(points, size)
            point = there.get((name, size))
            if point is None:
                cost = expected if expected >= SLOW else 4 * expected
                late = time.perf_counter() - start + cost > share
                if points and (late or expected > limit or peak > room):
                    break
                x = x if len(x) >= size else features_of(size, device, dtype)
                point = _point(name, x[:size], expected)
            points.append(point)
            yield point
        progress(number + 1, len(wanted))


def ahead(points: Sequence[Point], size: int) -> tuple[float, float]:
    """(seconds, bytes) that a method with these points is expected to take at `size` tokens: as it has grown from the
    last but one to the last, at least in proportion to the tokens, at most to their square; 0 without points.

    Example: 1 s at 144 tokens and 3 s at 288 make 9 s at 576, and 12 s if they were 5; with one point 4 of it.
    """
    if not points:
        return 0.0, 0.0
    last, before, found = points[-1], points[-2:][0], list[float]()
    for now, then in ((last.seconds, before.seconds), (last.peak, before.peak)):
        power = 2.0
        if then > 0 < now and last.tokens > before.tokens:
            power = min(2.0, max(1.0, math.log(now / then) / math.log(last.tokens / before.tokens)))
        found.append(now * (size / last.tokens) ** power)
    return found[0], found[1]


def memory(device: torch.device) -> float:
    """Bytes of a GPU's memory that are free, or of the machine's that there are."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _point(name: str, x: Tensor, expected: float) -> Point:
    run, seconds = runner(name, x), list[float]()
    if expected < SLOW:
        seconds = [_taken(run, x.device)]
        while len(seconds) < 3 and sum(seconds) < 1:
            seconds.append(_taken(run, x.device))
    peak = peak_bytes(lambda: seconds.append(_taken(run, x.device)), x.device)
    return Point(name, len(x), min(seconds), peak, x.nbytes)


def _taken(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the processor, or of a GPU."""
    if device.type != "cpu":
        return clock(run, device)
    start = time.process_time()
    run()
    return time.process_time() - start


def exponent(points: Sequence[Point]) -> float:
    """p of time ~ tokens^p, by least squares over the logarithms of what takes long enough to tell; NaN = nothing."""
    told = [(math.log(p.tokens), math.log(p.seconds)) for p in points if p.seconds >= UNSEEN]
    if len(told) < 2:
        return math.nan
    x, y = (sum(column) / len(told) for column in zip(*told, strict=True))
    return sum((a - x) * (b - y) for a, b in told) / sum((a - x) ** 2 for a, _ in told)


def steepest(points: Sequence[Point]) -> float:
    """The largest p between two neighbouring sizes: 2 is the law of all products, much more a cliff; NaN = nothing."""
    told = [p for p in points if p.seconds >= UNSEEN]
    steps = [math.log(b.seconds / a.seconds) / math.log(b.tokens / a.tokens) for a, b in pairwise(told)]
    return max(steps, default=math.nan)


def rows(found: Sequence[Point]) -> list[dict[str, Any]]:
    """A row per point; how it grows is said in each of a method's."""
    gram = {point.tokens: point.seconds for point in found if point.method == GRAM}
    grown = dict[str, list[Point]]()
    for point in found:
        grown.setdefault(point.method, []).append(point)
    return [
        {
            "method": point.method,
            "tokens": point.tokens,
            "ms": round(1000 * point.seconds, 3),
            "peak_bytes": point.peak,
            "of_features": round(point.peak / point.features, 3),
            "of_products": round(point.seconds / gram[point.tokens], 3) if point.tokens in gram else "",
            "exponent": round(exponent(points), 2),
            "steepest": round(steepest(points), 2),
        }
        for points in grown.values()
        for point in points
    ]


def earlier(file: Path, about: Mapping[str, str]) -> list[Point]:
    """The points of a table that `rows` made, to go on from; none if there is no such file.

    Raises:
        ValueError: it is another table, or comes from elsewhere, by `about` (device, versions), the day aside.
    """
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        found = list(csv.DictReader(lines))
    for row in found:
        for key in (key for key in about if key != "date"):
            if row.get(key) != about[key]:
                raise ValueError(
                    f"--resume: {file} has {key} {row.get(key)}, this run has {about[key]}: go on where it was "
                    "measured, or begin another file"
                )
    wide = WIDTH * getattr(torch, about["dtype"]).itemsize
    return [
        Point(
            row["method"],
            int(row["tokens"]),
            float(row["ms"]) / 1000,
            int(row["peak_bytes"]),
            int(row["tokens"]) * wide,
        )
        for row in found
    ]


def columns(sizes: Sequence[int]) -> list[str]:
    """Titles of the table: milliseconds at four of `sizes`, first and last among them, then the last one's memory."""
    return ["method", *(f"{size:,}" for size in _shown(sizes)), "memory", "products", "exponent", "steepest"]


def _shown(sizes: Sequence[int]) -> list[int]:
    return sorted({sizes[0], sizes[len(sizes) // 3], sizes[2 * len(sizes) // 3], sizes[-1]})


def cells(found: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[list[str]]:
    """Printed cells of rows: a line per method, in ms; at its last size memory in features, and at the last size at
    which all products were measured, too, time in these."""
    lines = []
    for name in dict.fromkeys(row["method"] for row in found):
        own = {row["tokens"]: row for row in found if row["method"] == name}
        last = own[max(own)]
        times = [_ms(own[size]["ms"]) if size in own else "" for size in _shown(sizes)]
        shares = [row["of_products"] for row in own.values() if row["of_products"] != ""]
        share = f"{shares[-1]:.2f}×" if shares else ""
        grown = ["" if math.isnan(last[key]) else f"{last[key]:.1f}" for key in ("exponent", "steepest")]
        lines.append([name, *times, f"{last['of_features']:.1f}×", share, *grown])
    return lines


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(found: Sequence[dict[str, Any]], file: Any) -> None:
    """Time and memory by the number of tokens, both logarithmic; the names stand where the lines end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2, sharex=True)
    names = list(dict.fromkeys(row["method"] for row in found))
    for axes, key, unit in ((time_axes, "ms", 1.0), (memory_axes, "peak_bytes", 2.0**20)):
        ends = []
        for number, name in enumerate(names):
            own = [row for row in found if row["method"] == name and row[key] > 0]
            if not own:
                continue
            style = {"color": "black", "linewidth": 2.2} if name == GRAM else {"color": f"C{number % 10}"}
            place, height = [row["tokens"] for row in own], [row[key] / unit for row in own]
            axes.plot(place, height, marker=".", linestyle="-" if number < 11 else "--", **style)
            ends.append((height[-1], place[-1], name, style["color"]))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _name_ends(axes, ends)
        axes.grid(alpha=0.3)
        sizes = sorted({row["tokens"] for row in found})
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30, ha="right", fontsize="small")
        axes.set_xlabel("tokens")
    time_axes.set_ylabel("ms")
    memory_axes.set_ylabel("MiB allocated at a time")
    figure.savefig(file, dpi=90)


def _name_ends(axes: Any, ends: Sequence[tuple[float, int, str, str]]) -> None:
    """Write each name beside the end of its line, moved up or down until none covers another."""
    low, high = (math.log10(y) for y in axes.get_ylim())
    apart = (high - low) / 38
    below = -math.inf
    heights = []
    ordered = sorted(ends)
    for end, *_ in ordered:
        below = max(math.log10(end), below + apart)
        heights.append(below)
    above = high - apart / 2
    for i in reversed(range(len(heights))):
        heights[i] = above = min(heights[i], above)
        above -= apart
    widest = max((place for _, place, _, _ in ends), default=1)
    for (end, place, name, color), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (place, end),
            (widest * 1.35, 10**height),
            color=color,
            fontsize="x-small",
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.4, "alpha": 0.6},
        )
    axes.set_xlim(right=widest * 9)
