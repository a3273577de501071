"""What compression costs and saves: prefill time, its share of scoring, peak memory — against uncompressed sdpa.

The model has the real architecture and random weights: how fast it is does not depend on what it has learned. Every
round times the uncompressed model and each method one after the other; speed-ups are ratios within a round.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

import vtc

TEXT_BEFORE, TEXT_AFTER = 20, 44  # tokens around the picture, as in a chat prompt with a question


@dataclass(frozen=True)
class Shape:
    """A LLaVA-1.5 architecture: decoder layers, width, heads, feed-forward width. 576 visual tokens."""

    layers: int
    width: int
    heads: int
    mlp: int


SHAPES = {
    "cpu-24x1024": Shape(24, 1024, 16, 2816),
    "llava-1.5-7b": Shape(32, 4096, 32, 11008),
}


@dataclass
class Line:
    """One method: seconds per prefill by round, and what its report said."""

    method: str
    keep: int | float | None
    seconds: list[float] = field(default_factory=list)
    speedups: list[float] = field(default_factory=list)  # against the uncompressed prefill of the same round
    ideal: float = 1.0  # FLOPs of the uncompressed prefill over those of this one
    tokens: float = 576.0  # visual tokens, mean over the decoder layers
    overhead: float = 0.0  # share of the prefill that scoring, choosing and gathering took
    kv_bytes: int = 0
    peak_bytes: int = 0  # most memory that one prefill had allocated at a time, weights left out

    @property
    def speedup(self) -> float:
        return statistics.median(self.speedups)

    @property
    def efficiency(self) -> float:
        """Measured speed-up as a share of the one that FLOPs predict."""
        return self.speedup / self.ideal


def build(shape: Shape, device: str, dtype: torch.dtype) -> Any:
    """The model, with random weights; its vision tower is small, because it is run once and not timed."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        vocab_size=32_064,
    )
    with torch.device(device):
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32_000)
        model = LlavaForConditionalGeneration(config)
    return model.to(dtype).eval()


@torch.inference_mode()
def measure(
    model: Any,
    settings: Sequence[tuple[str, int | float]],
    rounds: int = 5,
    batch: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Line]:
    """Time the prefill uncompressed and under every (method, keep), `rounds` times in turn, after one warm-up.

    Raises:
        ValueError: whatever `vtc.wrap` refuses, before anything is timed.
        RuntimeError: a method does not keep everything exactly when asked to; its speed would mean nothing.
    """
    config, device = model.config, next(model.parameters()).device
    image = [config.image_token_id] * 576
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(10, 30_000, (TEXT_BEFORE + TEXT_AFTER,), generator=generator).tolist()
    ids = torch.tensor([words[:TEXT_BEFORE] + image + words[TEXT_BEFORE:]] * batch, device=device)
    pixels = torch.randn(1, 3, 336, 336, generator=generator).to(device, next(model.parameters()).dtype)
    encoded = vtc.encode(model, [method for method, _ in settings], pixel_values=pixels)

    def prefill() -> Any:
        return model(input_ids=ids, **encoded.take([0] * batch), use_cache=True, logits_to_keep=1)

    lines = [Line("uncompressed", None), *(Line(method, keep) for method, keep in settings)]
    total, done = (rounds + 2) * len(lines), 0
    expected = prefill().logits
    for method in dict.fromkeys(method for method, _ in settings):  # correct first, then fast
        with _wrapped(model, Line(method, 1.0)):
            gap = (prefill().logits - expected).abs().max() / expected.abs().max()
            kept_all = vtc.report(model).tokens_out == 576 * batch  # thresholds may drop some whatever the budget
        if kept_all and gap > (1e-3 if expected.dtype == torch.float32 else 5e-2):
            raise RuntimeError(f"{method} changes the answer by {gap:.1e} although it keeps every token.")
    for number in range(rounds + 2):
        for line in lines:
            with _wrapped(model, line):
                seconds = _timed(prefill, device) if number else _peak(prefill, device, line)
                if number > 1:
                    line.seconds.append(seconds)
                    line.speedups.append(lines[0].seconds[-1] / seconds)
                if line.keep is not None:
                    report = vtc.report(model)
                    line.ideal, line.tokens = report.flops[0] / report.flops[1], report.tokens_average / batch
                    line.overhead = sum(stage.ms for stage in report.stages) / 1000 / seconds
                    line.kv_bytes = report.kv_bytes[1]
                    lines[0].kv_bytes = report.kv_bytes[0]
            done += 1
            progress(done, total)
    return lines


def _wrapped(model: Any, line: Line) -> Any:
    from contextlib import nullcontext

    if line.keep is None:
        return nullcontext()
    options = next((info.options for info in vtc.methods() if info.name == line.method), ())
    return vtc.wrapped(model, line.method, line.keep, **({"exact": True} if "exact" in options else {}))


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak(run: Callable[[], Any], device: torch.device, line: Line) -> float:
    """Note the most memory that one prefill holds at a time; seconds it took, with that bookkeeping."""
    start = time.perf_counter()
    line.peak_bytes = peak_bytes(run, device)
    return time.perf_counter() - start


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that `run` has allocated at a time, beyond what was allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    results: Any = seen.profiler
    held = peak = 0
    for event in sorted(results.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def terminal(lines: Sequence[Line]) -> Table:
    """The lines as a rich table."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in (
        "method",
        "keep",
        "mean tokens",
        "prefill ms",
        "speed-up",
        "(min–max)",
        "FLOPs predict",
        "efficiency",
        "scoring + gathering",
        "peak memory",
        "KV cache",
    ):
        table.add_column(title, justify="left" if title == "method" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*_cells(line, lines[0]))
    return table


def markdown(lines: Sequence[Line]) -> str:
    """The same as a Markdown table."""
    titles = [str(column.header) for column in terminal(lines).columns]
    head = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    return "\n".join([*head, *("| " + " | ".join(_cells(line, lines[0])) + " |" for line in lines), ""])


def _cells(line: Line, full: Line) -> list[str]:
    milliseconds = f"{1000 * statistics.median(line.seconds):.0f}"
    memory = f"{line.peak_bytes / 2**20:.0f} MiB ({100 * line.peak_bytes / full.peak_bytes:.0f} %)"
    if line.keep is None:
        return [
            line.method,
            "",
            f"{line.tokens:.0f}",
            milliseconds,
            "1.00×",
            "",
            "",
            "",
            "",
            memory,
            _mib(line.kv_bytes),
        ]
    spread = f"{min(line.speedups):.2f}–{max(line.speedups):.2f}"
    return [
        line.method,
        str(line.keep),
        f"{line.tokens:.0f}",
        milliseconds,
        f"{line.speedup:.2f}×",
        spread,
        f"{line.ideal:.2f}×",
        f"{100 * line.efficiency:.0f} %",
        f"{100 * line.overhead:.1f} %",
        memory,
        _mib(line.kv_bytes),
    ]


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def as_dict(lines: Sequence[Line]) -> list[dict[str, Any]]:
    return [asdict(line) | {"speedup": line.speedup if line.speedups else 1.0} for line in lines]
