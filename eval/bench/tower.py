"""Time of vision towers against keep, when patches merge between their blocks, beside what the FLOPs promise.

Towers have the width of real ones, a few blocks and random weights. Every round times the plain tower and each setting
one after the other; ratios are of one round. The ideal time is the plain one times the ratio of FLOPs of the blocks,
matching left out: what choosing and merging cost is part of what is measured, not of what is promised.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc.eval.bench.progress import in_rounds
from vtc.eval.bench.roofs import clock

COLUMNS = {
    "method": "method",
    "keep": "keep",
    "patches": "patches",
    "ms": "ms",
    "choose_ms": "choosing ms",
    "speedup": "speed-up",
    "spread": "(min–max)",
    "flops": "FLOPs ratio",
    "reached": "of the ideal",
}
PLAIN = "plain"


@dataclass
class Line:
    """One setting: seconds and milliseconds of choosing by round; (all, remaining) FLOPs of the blocks."""

    method: str
    keep: int | float | None
    patches: int = 0
    flops: tuple[int, int] = (1, 1)
    seconds: list[float] = field(default_factory=list)
    choosing: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Shape:
    """A tower of transformers: the model type of its config, what that holds, and the side of a picture in patches."""

    model_type: str
    config: dict[str, Any]
    side: int

    def build(self, device: torch.device, dtype: torch.dtype, blocks: int | None = None) -> tuple[Any, dict[str, Any]]:
        """(tower with random weights, arguments of its call on one random picture)."""
        from transformers import AutoConfig, AutoModel

        depth = "depth" if "depth" in self.config else "num_hidden_layers"
        config = AutoConfig.for_model(self.model_type, **{**self.config, **({depth: blocks} if blocks else {})})
        torch.manual_seed(0)
        tower = AutoModel.from_config(config, attn_implementation="sdpa").to(device, dtype).eval()
        return tower, {name: x.to(device) for name, x in self.inputs(config, dtype).items()}

    def inputs(self, config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        made, patch = torch.Generator().manual_seed(0), config.patch_size
        if "depth" not in self.config:
            return {"pixel_values": torch.randn(1, 3, self.side * patch, self.side * patch, generator=made).to(dtype)}
        width = 3 * config.temporal_patch_size * patch**2
        pixels = torch.randn(self.side**2, width, generator=made).to(dtype)
        return {"hidden_states": pixels, "grid_thw": torch.tensor([[1, self.side, self.side]])}


_CLIP = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=16, image_size=336)
_SIGLIP = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=4, num_attention_heads=16, image_size=384)
_QWEN = dict(hidden_size=1280, intermediate_size=3420, depth=4, num_heads=16, out_hidden_size=3584)
SHAPES = {
    "clip-l-336": Shape("clip_vision_model", _CLIP | {"patch_size": 14}, 24),
    "siglip-so400m": Shape("siglip_vision_model", _SIGLIP | {"patch_size": 14}, 27),
    "qwen2.5-vl-1296": Shape("qwen2_5_vl_vision", _QWEN | {"fullatt_block_indexes": [3]}, 36),
    "qwen2.5-vl-16384": Shape("qwen2_5_vl_vision", _QWEN | {"fullatt_block_indexes": [3]}, 128),
}


def measure(
    tower: Any,
    inputs: dict[str, Any],
    settings: Sequence[tuple[str, int | float]],
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Line]:
    """The plain tower and each of `settings`, (method, keep), on one picture; the first of `rounds` + 1 warms up."""
    device = next(tower.parameters()).device
    lines = [Line(PLAIN, None), *(Line(method, keep) for method, keep in settings)]
    for number, line in in_rounds(lines, rounds + 1, progress):
        with torch.inference_mode():
            if line.keep is None:
                seconds, chosen = clock(lambda: tower(**inputs), device), 0.0
            else:
                with vtc.wrapped(tower, line.method, keep=line.keep):
                    seconds = clock(lambda: tower(**inputs), device)
                    report = vtc.report(tower)
                assert report.tower is not None
                line.patches, line.flops = report.tokens_out, report.tower.flops
                lines[0].patches, chosen = report.tokens_in, sum(stage.ms for stage in report.stages)
        if number:
            line.seconds.append(seconds)
            line.choosing.append(chosen)
    return lines


def rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Medians in milliseconds; ratios are medians of the ratios within a round."""
    plain, found = lines[0], []
    for line in lines:
        ratios = [a / b for a, b in zip(plain.seconds, line.seconds, strict=True)]
        share = line.flops[1] / line.flops[0]
        found.append(
            {
                "method": line.method,
                "keep": "" if line.keep is None else line.keep,
                "patches": line.patches,
                "ms": round(1000 * statistics.median(line.seconds), 2),
                "choose_ms": round(statistics.median(line.choosing), 2),
                "speedup": round(statistics.median(ratios), 3),
                "speedup_min": round(min(ratios), 3),
                "speedup_max": round(max(ratios), 3),
                "flops": round(1 / share, 3),
                "reached": round(statistics.median(ratios) * share, 3),
                "rounds": len(ratios),
            }
        )
    return found


def cells(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Printed cells, one row per line."""
    printed = []
    for row in found:
        shown = {name: f"{value:.1f}" if name.endswith("ms") else str(value) for name, value in row.items()}
        shown |= {name: f"{row[name]:.2f}×" for name in ("speedup", "flops")}
        shown["reached"] = f"{100 * row['reached']:.0f} %"
        shown["spread"] = f"{row['speedup_min']:.2f}–{row['speedup_max']:.2f}" if row["keep"] != "" else ""
        printed.append([shown[name] for name in COLUMNS])
    return printed


def plot(found: Sequence[dict[str, Any]], file: Path) -> None:
    """Of each tower, its time as a share of the plain one against keep, and what the FLOPs promise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["tower"] for row in found):
        own = sorted((row for row in found if row["tower"] == name), key=lambda row: row["keep"] or 1.0)
        keeps = [row["keep"] or 1.0 for row in own]
        (line,) = axes.plot(keeps, [1 / row["speedup"] for row in own], marker="o", label=name)
        axes.plot(keeps, [1 / row["flops"] for row in own], linestyle="--", color=line.get_color())
    axes.set_xlabel("share of the patches left behind the last block (dashed: FLOPs)")
    axes.set_ylabel("share of the plain tower's time")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=150)
