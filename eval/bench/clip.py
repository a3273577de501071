"""Where the time goes until the first word of an answer about a video file: with all of its tokens and with fewer.

Reading and decoding the file, the processor, vision tower and projector (with what a method does before it), choosing,
the language model's prefill. Every round times the uncompressed model and each method one after the other; speed-ups
are ratios within a round and count everything from the file on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vtc
from vtc.eval.bench.model import FULL, check, wrapped
from vtc.eval.bench.progress import in_rounds
from vtc.eval.bench.roofs import clock
from vtc.methods.base.notation import read_methods
from vtc.models import adapter_for

PARTS = ("read", "process", "encode", "prefill")
COLUMNS = {
    "method": "method",
    "keep": "keep",
    "tokens": "tokens",
    **{f"{part}_ms": f"{part} ms" for part in ("read", "process", "encode", "select", "prefill", "total")},
    "prefill_speedup": "prefill speed-up",
    "speedup": "total speed-up",
    "spread": "(min–max)",
}


@dataclass
class Line:
    """One way of answering: seconds of each part by round; `select` is a share of the prefill."""

    method: str
    keep: int | float | None
    tokens: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in (*PARTS, "select")})

    @property
    def totals(self) -> list[float]:
        return [sum(parts) for parts in zip(*(self.seconds[part] for part in PARTS), strict=True)]


@dataclass
class Asked:
    """A question about a video file."""

    model: Any
    processor: Any
    file: Path
    question: str
    frames: int | None = None
    fps: float | None = None

    def read(self) -> Any:
        return vtc.load_clip(self.file, self.frames, self.fps)

    def process(self, clip: Any) -> Any:
        inputs = vtc.prepare(self.processor, self.question, clips=[clip])
        return inputs.to(self.model.device, self.model.dtype)

    def encode(self, inputs: Any, methods: Sequence[str]) -> Any:
        return vtc.encode(self.model, methods, **inputs)

    def prefill(self, inputs: Any, encoded: Any) -> Any:
        """The forward; with its vision tower where nothing has been `encoded`."""
        if encoded is None:
            return self.model(**inputs, use_cache=True, logits_to_keep=1)
        names = ("input_ids", "attention_mask", "mm_token_type_ids")
        given = {name: inputs[name] for name in names if name in inputs}
        return self.model(**given, **encoded.take([0]), use_cache=True, logits_to_keep=1)

    @contextmanager
    def tower_watched(self, device: torch.device) -> Iterator[list[float]]:
        """Notes when the vision tower begins and when it ends, with what a method does before and behind it."""
        tower, ticks = adapter_for(self.model).tower(self.model), []

        def tick(*_: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ticks.append(time.perf_counter())

        handles = [tower.register_forward_pre_hook(tick, prepend=True), tower.register_forward_hook(tick)]
        try:
            yield ticks
        finally:
            for handle in handles:
                handle.remove()

    def time(self, methods: Sequence[str], device: torch.device) -> dict[str, float]:
        """Seconds of each part of the way, from the file on."""
        spent: dict[str, float] = {}

        def timed(part: str, work: Callable[[], Any]) -> Any:
            made: list[Any] = []
            spent[part] = clock(lambda: made.append(work()), device)
            return made[0]

        clip = timed("read", self.read)
        inputs = timed("process", lambda: self.process(clip))
        if own_tower_run(methods):
            with self.tower_watched(device) as ticks:
                timed("prefill", lambda: self.prefill(inputs, None))
            spent["encode"] = ticks[1] - ticks[0]
            spent["prefill"] -= spent["encode"]
            return spent
        encoded = timed("encode", lambda: self.encode(inputs, methods))
        timed("prefill", lambda: self.prefill(inputs, encoded))
        return spent


def own_tower_run(methods: Sequence[str]) -> bool:
    """Whether one of these acts before the vision tower or inside it, which then runs with the method alone."""
    named = [one for method in methods for one in read_methods(method)]
    return any(vtc.resolve(name, **options).changes_tower for name, options in named)


@torch.inference_mode()
def measure(
    asked: Asked,
    settings: Sequence[tuple[str, int | float]],
    rounds: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Line]:
    """Time the uncompressed model and every (method, keep), `rounds` times in turn after one round of warming up.

    Raises:
        ValueError: the file or a method's options are wrong, before anything is timed.
        RuntimeError: a method does not keep everything exactly when asked to; its speed would mean nothing.
    """
    device = asked.model.device
    names = list(dict.fromkeys(method for method, _ in settings))
    inputs = asked.process(asked.read())
    encoded = asked.encode(inputs, [name for name in names if not own_tower_run([name])] or ["random"])
    with vtc.wrapped(asked.model, "random", 1.0):
        asked.prefill(inputs, encoded)
        tokens = vtc.report(asked.model).tokens_in
    for name in names:
        source = None if own_tower_run([name]) else encoded
        check(asked.model, [name], partial(asked.prefill, inputs, source), tokens)
    lines = [Line(FULL, None, tokens), *(Line(method, keep) for method, keep in settings)]
    for number, line in in_rounds(lines, rounds + 1, progress):
        compressed = line.method != FULL
        with wrapped(asked.model, line.method, line.keep) if compressed else nullcontext():
            spent = asked.time([line.method if compressed else "random"], device)  # random listens to nothing
            report = vtc.report(asked.model) if compressed else None
        if report is not None:
            line.tokens = report.tokens_out
            spent["select"] = sum(stage.ms for stage in report.stages) / 1000
        if number:  # the first round warms up
            for part, seconds in spent.items():
                line.seconds[part].append(seconds)
    return lines


def rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Medians in milliseconds, speed-ups as medians of the ratios within a round."""
    full, found = lines[0], []
    for line in lines:
        ratios = [a / b for a, b in zip(full.totals, line.totals, strict=True)]
        prefills = [a / b for a, b in zip(full.seconds["prefill"], line.seconds["prefill"], strict=True)]
        parts = {part: statistics.median(values) for part, values in line.seconds.items() if values}
        parts["total"] = statistics.median(line.totals)
        found.append(
            {"method": line.method, "keep": "" if line.keep is None else line.keep, "tokens": line.tokens}
            | {f"{part}_ms": round(1000 * seconds, 2) for part, seconds in parts.items()}
            | {"prefill_speedup": round(statistics.median(prefills), 3), "speedup": round(statistics.median(ratios), 3)}
            | {"speedup_min": round(min(ratios), 3), "speedup_max": round(max(ratios), 3), "rounds": len(ratios)}
        )
    return found


def cells(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Printed cells, one row per line."""
    printed = []
    for row in found:
        shown = {name: f"{value:.1f}" if name.endswith("_ms") else str(value) for name, value in row.items()}
        shown |= {name: f"{row[name]:.2f}×" for name in ("prefill_speedup", "speedup")}
        shown["spread"] = f"{row['speedup_min']:.2f}–{row['speedup_max']:.2f}" if row["keep"] != "" else ""
        printed.append([shown.get(name, "") for name in COLUMNS])
    return printed


def plot(found: Sequence[dict[str, Any]], file: Path) -> None:
    """One bar a line, its parts beside each other: what compression cannot make faster stays in sight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 0.34 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row['method']} {row['keep']}".strip() for row in found]
    left = [0.0] * len(found)
    for part in PARTS:
        widths = [row[f"{part}_ms"] for row in found]
        axes.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms to the first word")
    axes.legend(ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
