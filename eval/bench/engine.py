"""What the engine itself costs: a wrapped model against the plain one at equal work, prefill and decode step.

Plain and wrapped are twins, two sets of modules around the same weights, so that nothing is attached or taken off
between the two runs of a pair. Where a method keeps everything, both do the same arithmetic on the same tokens; where
it keeps a tenth, the plain one is given a prompt that is as short to begin with. What is left between them is the
engine's: hooks, listening, choosing, cutting.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import vtc
from vtc.eval.bench import archs
from vtc.eval.bench.model import Bench, check
from vtc.eval.bench.pairs import Middle, pair, turns
from vtc.eval.bench.roofs import clock
from vtc.methods.base.method import Method

PREFILL, DECODE = "prefill", "decode step"
#: what the identity wrap may cost: shares of a wide model's run, seconds per layer and step of a narrow one's
WIDE, SHARES, PER_LAYER = 512, {PREFILL: 0.02, DECODE: 0.01}, 5e-6


@dataclass(frozen=True)
class Size:
    """A decoder of so many layers of such a width."""

    layers: int
    width: int

    @classmethod
    def read(cls, text: str) -> Size:
        """ "24x1024"; ValueError if it is no such text."""
        parts = text.split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts) or int(parts[1]) % 64:
            raise ValueError(f"{text!r} is no size: give layers x width, the width a multiple of 64, such as 24x1024.")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"

    def arch(self, grid: int, video: bool) -> archs.Arch:
        """A model that sees a picture of `grid` x `grid` tokens, or a video of four frames with as many together."""
        heads, mlp, picture = max(4, self.width // 64), 11 * self.width // 4, (14 * grid, 14 * grid)
        if video:
            return archs.Arch("qwen2_5_vl", self.layers, self.width, heads, mlp, archs.SMALL_QWEN, None, picture, 8)
        return archs.Arch("llava", self.layers, self.width, heads, mlp, archs.SMALL_CLIP, None, picture)


@dataclass(frozen=True)
class Setting:
    """A method at work at one stage. `short`: it keeps a part, and the plain prompt is as short; `video`: of a video,
    as DyCoke's second stage leaves pictures alone."""

    stage: str
    method: Callable[[], Method]
    title: str
    short: bool = False
    video: bool = False

    @classmethod
    def of(cls, stage: str, text: str, short: bool = False) -> Setting:
        return cls(stage, partial(vtc.resolve, text), text, short)


IDENTITY = "identity"
SETTINGS = (
    Setting.of(IDENTITY, "random(keep=1.0)"),
    Setting.of("input", "random(keep=0.1)", short=True),
    Setting.of("layer", "fastv(keep=1.0)"),
    Setting.of("layer", "pyramiddrop(keep=1.0)"),
    Setting.of("cache", "streaming(keep=1.0)"),
    Setting.of("cache", "h2o(keep=1.0)"),
    Setting("read", lambda: vtc.DyCoke(keep=1.0).parts()[1], "dycoke, active part", video=True),
)


@dataclass
class Line:
    """One setting at one size: seconds of the plain and of the wrapped model, by phase and pair."""

    size: Size
    setting: Setting
    tokens: int  # of the prompt, as it comes in
    plain: dict[str, list[float]] = field(default_factory=lambda: {PREFILL: [], DECODE: []})
    wrapped: dict[str, list[float]] = field(default_factory=lambda: {PREFILL: [], DECODE: []})

    def extra(self, phase: str) -> Middle:
        """Seconds that the wrapped model takes more."""
        pairs = zip(self.wrapped[phase], self.plain[phase], strict=True)
        return Middle.of([own - plain for own, plain in pairs])


class Asked:
    """A model and a prompt: reading it, and going on word by word."""

    def __init__(self, bench: Bench, keep: int | None = None) -> None:
        """`keep`: the plain prompt with that many tokens in place of the picture's; None = the picture."""
        self.bench, self.keep = bench, keep
        self.encoded = bench.encode(["random"])  # none of the settings listens to the tower
        self.word = torch.full((1, 1), 10, device=bench.device)  # that both go on alike matters, not how
        self.output: Any = None

    def prefill(self) -> Any:
        self.output = self.bench.forward(self.encoded) if self.keep is None else self.bench.shorter(self.keep)
        return self.output

    def step(self) -> None:
        """One more token on the cache of the last prefill."""
        name = "cache" if "cache" in self.output else "past_key_values"  # its name since transformers 5.24, and before
        self.bench.model(input_ids=self.word, **{name: self.output[name]}, use_cache=True, logits_to_keep=1)


def twin(bench: Bench) -> Bench:
    """The same prompt for another set of modules, whose weights are the first one's own."""
    weights = itertools.chain(bench.model.parameters(), bench.model.buffers())
    other = copy.copy(bench)
    other.model = copy.deepcopy(bench.model, {id(weight): weight for weight in weights})
    return other


@torch.inference_mode()
def measure(
    sizes: Sequence[Size],
    device: torch.device,
    dtype: torch.dtype,
    grid: int,
    pairs: int = 200,
    steps: int = 4,
    seconds: float = float("inf"),
    settings: Sequence[Setting] = SETTINGS,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Iterator[Line]:
    """Time every setting at every size against the plain model, pair by pair.

    Args:
        grid: sides of the picture in tokens, even. pairs: prefills of each, with `steps` decode steps each, which are
            pairs of their own.
        seconds: for everything together; each setting gets its share, and so fewer pairs where that does not do.
        progress: called with (what is being timed, pairs done, all).

    Raises:
        RuntimeError: a method that keeps everything changes the answer.
    """
    began, left = time.perf_counter(), len(sizes) * len(settings)
    for size in sizes:
        for video in (False, True):
            own = [setting for setting in settings if setting.video == video]
            plain = Bench(size.arch(grid, video), device, dtype, 1) if own else None
            for setting in own:
                assert plain is not None
                share = (seconds - (time.perf_counter() - began)) / left
                yield _line(size, setting, plain, pairs, steps, share, partial(progress, f"{size} {setting.title}"))
                left -= 1


def _line(size: Size, setting: Setting, plain: Bench, pairs: int, steps: int, seconds: float, progress: Any) -> Line:
    own, method = twin(plain), setting.method()
    asked, reference = Asked(own), Asked(plain, plain.kept(method.keep) if setting.short else None)
    if setting.stage == IDENTITY:
        check(own.model, [method.title], asked.prefill, plain.tokens)
    line = Line(size, setting, plain.text + plain.tokens)
    runs = ((PREFILL, Asked.prefill), *[(DECODE, Asked.step)] * steps)
    with vtc.wrapped(own.model, method):
        for _, run in 2 * runs:  # warms up
            run(reference)
            run(asked)
        for _ in turns(pairs, seconds, progress=progress):
            for phase, run in runs:
                first, second = (partial(clock, partial(run, one), plain.device) for one in (reference, asked))
                pair(first, second, (line.plain[phase], line.wrapped[phase]))
    return line


def target(line: Line, phase: str) -> float | None:
    """Most seconds that the wrap may cost, where there is a target."""
    if line.setting.stage != IDENTITY:
        return None
    if line.size.width >= WIDE:
        return SHARES[phase] * Middle.of(line.plain[phase]).median
    return PER_LAYER * line.size.layers if phase == DECODE else None


def rows(line: Line) -> list[dict[str, Any]]:
    """One row per phase; times in ms and µs, `low` to `high` the 95 % interval of the median, `q1` and `q3` quartiles.

    `met` is "yes" or "no" where the interval lies on one side of the target, else "open".
    """
    found = []
    for phase in (PREFILL, DECODE):
        plain, extra, aim = Middle.of(line.plain[phase]).median, line.extra(phase).scaled(1e6), target(line, phase)
        within = "" if aim is None else "yes" if extra.high <= 1e6 * aim else "no" if extra.low > 1e6 * aim else "open"
        found.append(
            {
                "size": str(line.size),
                "stage": line.setting.stage,
                "method": line.setting.title,
                "phase": phase,
                "prompt": line.tokens,
                "plain_ms": round(1000 * plain, 3),
                "wrapped_ms": round(1000 * Middle.of(line.wrapped[phase]).median, 3),
                "extra_us": round(extra.median, 1),
                "low_us": round(extra.low, 1),
                "high_us": round(extra.high, 1),
                "q1_us": round(extra.quartiles[0], 1),
                "q3_us": round(extra.quartiles[1], 1),
                "extra_share": round(extra.median / plain / 1e6, 5),
                "us_per_layer": round(extra.median / line.size.layers, 2),
                "target_us": "" if aim is None else round(1e6 * aim, 1),
                "met": within,
                "pairs": extra.n,
            }
        )
    return found


COLUMNS = {
    "stage": "stage",
    "method": "method",
    "phase": "phase",
    "plain": "plain ms",
    "extra": "extra µs",
    "interval": "95 % of the median",
    "quartiles": "quartiles",
    "share": "extra %",
    "layer": "µs per layer",
    "target": "target µs",
    "met": "met",
    "pairs": "pairs",
}


def cells(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Printed cells of rows."""
    shown = []
    for row in found:
        own = {name: str(row.get(name, "")) for name in COLUMNS}
        own["plain"] = f"{row['plain_ms']:.2f}"
        own["extra"] = f"{row['extra_us']:.0f}"
        own["interval"] = f"{row['low_us']:.0f} to {row['high_us']:.0f}"
        own["quartiles"] = f"{row['q1_us']:.0f} to {row['q3_us']:.0f}"
        own["share"] = f"{100 * row['extra_share']:.2f} %"
        own["layer"] = f"{row['us_per_layer']:.1f}"
        own["target"] = "" if row["target_us"] == "" else f"{row['target_us']:.0f}"
        shown.append(list(own.values()))
    return shown


def plot(found: Sequence[dict[str, Any]], file: Any) -> None:
    """Extra µs of every setting with the 95 % interval of the median, a row of panels per size, one per phase."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(row["size"] for row in found))
    figure = Figure(figsize=(9.6, 3.2 * len(sizes)), layout="constrained")
    for panels, size in zip(figure.subplots(len(sizes), 2, squeeze=False), sizes, strict=True):
        for axes, phase in zip(panels, (PREFILL, DECODE), strict=True):
            own = [row for row in found if (row["size"], row["phase"]) == (size, phase)]
            middle, low, high = ([row[name] for row in own] for name in ("extra_us", "low_us", "high_us"))
            spread = [
                [m - x for m, x in zip(middle, low, strict=True)],
                [x - m for m, x in zip(middle, high, strict=True)],
            ]
            axes.barh([row["method"] for row in own], middle, xerr=spread, color="C0", error_kw={"linewidth": 0.8})
            for aim in {row["target_us"] for row in own} - {""}:
                axes.axvline(aim, color="C3", linewidth=0.9, linestyle="--", label="target of the identity wrap")
                axes.legend(fontsize="small", loc="lower right")
            axes.axvline(0, color="black", linewidth=0.8)
            axes.invert_yaxis()
            axes.set_title(f"{size}, {phase}", fontsize="medium")
            axes.set_xlabel("µs more than the plain model")
    figure.savefig(file, dpi=110)
