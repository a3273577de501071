"""What compression costs and saves in a model: time to first token by part, decoding, memory — against plain sdpa.

Every round times the uncompressed model and each method one after the other; speed-ups are ratios within a round, and
count the method's own cost.
"""

from __future__ import annotations

import inspect
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

import vtc
from vtc.cost import DecoderCost
from vtc.engine.attention import LayerView
from vtc.engine.stages.read import ReadRun
from vtc.eval.bench import archs
from vtc.eval.bench.progress import in_rounds
from vtc.eval.bench.roofs import clock, roofs
from vtc.methods.base.cache import ActiveMethod

DECODE_STEPS = 8
FULL, CEILING = "uncompressed", "(same length)"


@dataclass
class Line:
    """One setting: seconds by round, and what its report said."""

    arch: str
    batch: int
    method: str
    keep: int | float | None
    encode: list[float] = field(default_factory=list)  # vision tower and projector, listening included
    prefill: list[float] = field(default_factory=list)  # language model to the first logits, choosing included
    decode: list[float] = field(default_factory=list)  # per token
    choice: list[float] = field(default_factory=list)  # per token: choosing what the step reads, where a method does
    select: list[float] = field(default_factory=list)  # of the prefill: scoring, choosing and gathering
    speedups: list[float] = field(default_factory=list)  # of the prefill, against the uncompressed one of that round
    ideal: float = 1.0  # speed-up of the prefill that FLOPs and bytes predict
    flops: float = 1.0  # FLOPs of the uncompressed prefill over those of this one
    tokens: float = 0.0  # visual tokens per picture, mean over the decoder layers
    kv_bytes: int = 0
    peak_bytes: int = 0  # most memory that one prefill had allocated at a time, weights left out

    @property
    def compressed(self) -> bool:
        return self.method not in (FULL, CEILING)

    @property
    def speedup(self) -> float:
        return statistics.median(self.speedups)

    @property
    def efficiency(self) -> float:
        """Measured speed-up as a share of the ideal one."""
        return self.speedup / self.ideal


class Bench:
    """A model, a batch of prompts, and the plain and compressed ways through them."""

    def __init__(self, arch: archs.Arch, device: torch.device, dtype: torch.dtype, batch: int, model: Any = None):
        self.model = archs.build(arch, device, dtype) if model is None else model
        self.inputs = archs.inputs(arch, self.model, batch)
        self.ids = self.inputs["input_ids"]
        self.device, self.dtype, self.batch = device, dtype, batch
        self.tokens = int(((self.ids[0] == archs.IMAGE) | (self.ids[0] == archs.VIDEO)).sum())
        self.text = self.ids.shape[1] - self.tokens
        #: before transformers 5.18 models take no features: every prefill runs the tower, whose time is then taken off
        self.takes_features = "mm_encoder_outputs" in inspect.signature(type(self.model).forward).parameters

    def encode(self, methods: Sequence[str]) -> Any:
        """What `forward` takes: the features, or None where it has to run the tower again."""
        if self.takes_features:
            return vtc.encode(self.model, methods, **self.inputs)
        base = self.model.model
        run = base.get_video_features if "pixel_values_videos" in self.inputs else base.get_image_features
        accepted = inspect.signature(run).parameters
        run(**{name: value for name, value in self.inputs.items() if name in accepted})
        return None

    def forward(self, encoded: Any) -> Any:
        if encoded is None:
            return self.model(**self.inputs, use_cache=True, logits_to_keep=1)
        extra = {key: self.inputs[key] for key in ("mm_token_type_ids",) if key in self.inputs}
        return self.model(
            input_ids=self.ids, **extra, **encoded.take(range(self.batch)), use_cache=True, logits_to_keep=1
        )

    def kept(self, keep: int | float) -> int:
        return keep if isinstance(keep, int) else max(1, round(keep * self.tokens))

    def shorter(self, keep: int | float) -> Any:
        """The plain model on a prompt that has `keep` visual tokens' length to begin with."""
        ids = self.ids[:, : self.text + self.kept(keep)].clamp(max=archs.WORDS)
        return self.model(input_ids=ids, use_cache=True, logits_to_keep=1)

    def prepare(self, line: Line) -> tuple[Callable[[], Any], float | None]:
        """(a prefill as `line` says, seconds that its vision tower took)."""
        if line.method == CEILING:
            assert line.keep is not None
            keep = line.keep
            return lambda: self.shorter(keep), None
        encoded: list[Any] = []
        methods = ["random"] if line.method == FULL else [line.method]  # random listens to nothing
        seconds = clock(lambda: encoded.append(self.encode(methods)), self.device)
        return lambda: self.forward(encoded[0]), seconds

    def decode(self, output: Any) -> float:
        """Seconds per token: the median of a few greedy steps on the cache of a prefill."""
        name = "cache" if "cache" in output else "past_key_values"  # its name since transformers 5.24, and before
        cache, token = output[name], output.logits[:, -1:].argmax(dim=-1).clamp(max=archs.WORDS)

        def step() -> None:
            nonlocal token
            out = self.model(input_ids=token, **{name: cache}, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(dim=-1).clamp(max=archs.WORDS)

        return statistics.median(clock(step, self.device) for _ in range(DECODE_STEPS))

    def time(self, line: Line, first: Line) -> None:
        """One round of a line; `first` is the uncompressed one, already timed in this round."""
        prefill, encode = self.prepare(line)
        output: list[Any] = []
        seconds = clock(lambda: output.append(prefill()), self.device)
        if encode is not None:
            line.encode.append(encode)
            seconds -= 0.0 if self.takes_features else encode
        line.prefill.append(seconds)
        line.speedups.append(first.prefill[-1] / seconds)
        if line.compressed:
            line.select.append(sum(stage.ms for stage in vtc.report(self.model).stages) / 1000)
        line.decode.append(self.decode(output[0]))
        if line.compressed and any(isinstance(part, ActiveMethod) for part in vtc.resolve(line.method).parts()):
            with timed_choices(self.device) as seconds:  # once more: to be timed, the device must come to rest
                self.decode(output[0])
            line.choice.append(statistics.median(seconds))


class Budget:
    """Time that a benchmark may take, from now on."""

    def __init__(self, seconds: float = float("inf")) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def spent(self) -> bool:
        return time.perf_counter() > self._end


@contextmanager
def timed_choices(device: torch.device) -> Iterator[list[float]]:
    """Seconds of every choice, by a decode step, of what it reads; filled while the with block runs."""
    seconds: list[float] = []
    decide = ReadRun.decide

    def timed(self: ReadRun, cache: Any, view: LayerView) -> None:
        seconds.append(clock(lambda: decide(self, cache, view), device))

    ReadRun.decide = timed
    try:
        yield seconds
    finally:
        ReadRun.decide = decide


@torch.inference_mode()
def measure(
    name: str,
    bench: Bench,
    settings: Sequence[tuple[str, int | float]],
    rounds: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
    budget: Budget | None = None,
) -> list[Line]:
    """Time the uncompressed model and every (method, keep), `rounds` times in turn, after warming up.

    Once `budget` is spent no round begins, but the first.

    For every keep there is one more line: the plain model on a prompt that is that much shorter to begin with, which
    no method can be faster than.

    Raises:
        ValueError: whatever `vtc.wrap` refuses, before anything is timed.
        RuntimeError: a method does not keep everything exactly when asked to; its speed would mean nothing.
    """
    names = list(dict.fromkeys(method for method, _ in settings))
    everything = bench.encode(names)
    check(bench.model, names, lambda: bench.forward(everything), bench.tokens * bench.batch)
    lines = [Line(name, bench.batch, FULL, None, tokens=bench.tokens)]
    for keep in dict.fromkeys(keep for _, keep in settings):
        lines.append(Line(name, bench.batch, CEILING, keep, tokens=bench.kept(keep)))
        lines += [Line(name, bench.batch, method, keep) for method, k in settings if k == keep]
    for number, line in in_rounds(lines, rounds + 2, progress):
        if line is lines[0] and number > 2 and budget is not None and budget.spent:
            break
        with wrapped(bench.model, line.method, line.keep) if line.compressed else nullcontext():
            if number == 0:
                line.peak_bytes = peak_bytes(bench.prepare(line)[0], bench.device)
            elif number == 1:
                bench.prepare(line)[0]()
            else:
                bench.time(line, lines[0])
            if number == 1:
                _account(line, lines[0], bench)
    return lines


def check(model: Any, methods: Sequence[str], forward: Callable[[], Any], tokens: int) -> None:
    """Keeping everything must change nothing, on the very inputs that are timed."""
    expected = forward().logits
    limit = 1e-3 if expected.dtype == torch.float32 else 5e-2
    for method in methods:
        with wrapped(model, method, 1.0):
            gap = (forward().logits - expected).abs().max() / expected.abs().max()
            kept_all = vtc.report(model).tokens_out == tokens  # thresholds may drop some whatever the budget
        if kept_all and not gap <= limit:
            raise RuntimeError(f"{method} changes the answer by {gap:.1e} although it keeps every token.")


def wrapped(model: Any, method: str, keep: int | float | None) -> Any:
    """`vtc.wrapped`, with the exact-count mode of methods that have one."""
    chosen = vtc.resolve(method, keep)
    return vtc.wrapped(model, vtc.resolve(chosen, exact=True) if hasattr(chosen, "exact") else chosen)


def _account(line: Line, full: Line, bench: Bench) -> None:
    """What the report and the cost model say of a line, and of the uncompressed one."""
    if line.method == FULL:
        return
    size = next(bench.model.parameters()).element_size()
    cost = DecoderCost.of(bench.model.config.get_text_config(), size)
    if line.compressed:
        report = vtc.report(bench.model)
        line.tokens = report.tokens_average / bench.batch
        line.kv_bytes, full.kv_bytes = report.kv_bytes[1], report.kv_bytes[0]
        line.flops = report.flops[0] / report.flops[1]
        flops, cached = report.flops_by_layer, report.kv_bytes_by_layer
    else:
        lengths = [bench.text + bench.tokens, bench.text + int(line.tokens)]
        layers = range(cost.layers)
        flops = [tuple(bench.batch * cost.layer_flops(i, n) for n in lengths) for i in layers]
        cached = [tuple(bench.batch * cost.layer_kv_bytes(i, n) for n in lengths) for i in layers]
        line.kv_bytes = sum(after for _, after in cached)
        line.flops = sum(before for before, _ in flops) / sum(after for _, after in flops)
    roof, weights = roofs(bench.device, bench.dtype), [size * layer.weights for layer in cost.each]
    least = [
        sum(roof.seconds(f[i], own + c[i]) for f, c, own in zip(flops, cached, weights, strict=True)) for i in (0, 1)
    ]
    line.ideal = least[0] / least[1]


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
