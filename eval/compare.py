"""Runs side by side: found in folders, grouped by what they can be compared within, and turned into rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vtc.eval.command import command, versions
from vtc.eval.results import Run
from vtc.eval.settings import BASELINES, BLIND, DOWNSAMPLE, FULL, RANDOM
from vtc.eval.statistics import Difference, Score, holm
from vtc.eval.store import CONFIG, METRICS, is_run
from vtc.speedup import SpeedUp

LEVEL = 0.05
RIGHT = 0.5  # a score from which an answer counts as right, for group A
# Runs that differ in one of these answer different questions, or the same ones differently put.
_SAME = ("model", "weights", "data", "digest", "metrics", "instruction", "max_new_tokens", "frames", "fps", "dtype")


@dataclass(frozen=True)
class Row:
    """One run among others.

    Attributes:
        label: method and options, of paths the last part.
        tokens_in, tokens: visual tokens per question, before and after the last layer that drops any; average: mean
            over the decoder layers. flops, kv: of the prefill and the KV cache, per question. speedup: to the first
            token, over the uncompressed run.
        accuracy and the like: fractions. p_full, p_random: of the differences, corrected for all rows of the group
            together (Holm).
        picture_ms: time per picture, of a classifier. cache: bytes of the KV cache, measured when it was timed.
        group_a: accuracy on the questions that the uncompressed model gets right and `downsample` at the same keep gets
            wrong (VTC-Bench, ACL 2026: those that take more than a smaller picture). why_not: why there is none.
        full_cost: whether pictures that were made smaller were made larger again, and have cost more tokens than asked
            for. least: numbers of tokens of videos that were made as small as they can be, more than asked for, too.
        command: makes the row again.
    """

    label: str
    keep: int | float | None
    tokens_in: float
    tokens: float
    average: float
    flops: float
    flops_share: float
    kv: float
    kv_share: float
    ttft_ms: float | None
    speedup: SpeedUp | None
    decode: float | None
    picture_ms: float | None
    peak: float | None
    accuracy: Score
    retention: Score | None
    loyalty: Score | None
    tokdense: float | None
    versus_full: Difference | None
    versus_random: Difference | None
    p_full: float | None
    p_random: float | None
    group_a: Score | None
    why_not: str
    full_cost: bool
    least: list[int]
    tasks: dict[str, Score]
    extras: dict[str, dict[str, float]]
    broken: int
    command: str
    cache: float | None = None

    @property
    def name(self) -> str:
        """The label, marked where the full cost was paid, and where there are more tokens than asked for."""
        marks = ("†" if self.full_cost else "") + ("‡" if self.least else "")
        return f"{self.label} {marks}".rstrip()

    @property
    def compressed(self) -> bool:
        return self.keep is not None

    @property
    def beats_random(self) -> bool:
        gain = self.versus_random
        return gain is not None and gain.mean > 0 and self.p_random is not None and self.p_random < LEVEL


@dataclass(frozen=True)
class Group:
    """Runs of one model on one data set, asked the same way: these can be compared."""

    runs: tuple[Run, ...]

    @property
    def model(self) -> str:
        return self.runs[0].config["model"]

    @property
    def data(self) -> str:
        return self.runs[0].config["data"]

    @property
    def tasks(self) -> list[str]:
        return list(self.runs[0].config["tasks"])

    @property
    def title(self) -> str:
        config = self.runs[0].config
        how = [f"{name} {config[name]}" for name in ("frames", "fps", "instruction") if config[name]]
        return ", ".join([f"{Path(self.model).name} on {self.data}", *how])

    @cached_property
    def full(self) -> Run | None:
        return next((run for run in self.runs if run.method == FULL), None)

    def baseline(self, name: str, run: Run) -> Run | None:
        """`random` or `downsample` at the same keep, itself left out."""
        same = (r for r in self.runs if r.label == name and repr(r.keep) == repr(run.keep) and r is not run)
        return next(same, None) if run.keep is not None else None

    def beyond_downsampling(self, run: Run) -> tuple[Score | None, str]:
        """Accuracy in group A of the run's budget (see `Row`), or why there is none."""
        if run.keep is None or run.label == DOWNSAMPLE:
            return None, ""  # it is what the group is made of
        full, small = self.full, self.baseline(DOWNSAMPLE, run)
        if full is None:
            return None, "the uncompressed run is not here"
        if small is None:
            return None, f"no run of {DOWNSAMPLE} keeps {run.keep}"
        hard = {
            i
            for i, line in full.lines.items()
            if line["score"] >= RIGHT and i in small.lines and small.lines[i]["score"] < RIGHT
        }
        found = run.accuracy(among=hard)
        return (
            found,
            "" if found else f"{DOWNSAMPLE} at {run.keep} gets nothing wrong that the uncompressed model gets right",
        )

    @property
    def kind(self) -> str:
        """What the questions are about, in the plural."""
        kinds = self.runs[0].config["kinds"]
        return "pictures and videos" if len(kinds) > 1 else "videos" if kinds == ["video"] else "pictures"

    @property
    def made(self) -> list[str]:
        """Code, versions and machine that the runs come from, each once."""
        return list(dict.fromkeys(said for run in self.runs if (said := versions(run.config))))

    @property
    def questions(self) -> int:
        return self.runs[0].config["questions"]

    @property
    def media(self) -> int:
        return len({line["media"] for run in self.runs for line in run.lines.values()})

    @cached_property
    def rows(self) -> list[Row]:
        """One row per run: uncompressed, blind, then budgets from large to small, the baselines first within one."""
        runs = sorted(self.runs, key=self._place)
        full = [self._versus(run, self.full) if run is not self.full else None for run in runs]
        random = [self._versus(run, self.baseline(RANDOM, run)) for run in runs]
        p_full, p_random = _corrected(full), _corrected(random)
        names = _short([run.label for run in runs])
        rows = [
            _row(self, run, name, *others)
            for run, name, *others in zip(runs, names, full, random, p_full, p_random, strict=True)
        ]
        return [row for row in rows if row is not None]

    def _place(self, run: Run) -> tuple:
        tokens = run.keep * run.mean("tokens_in") if isinstance(run.keep, float) else run.keep or 0
        first = BASELINES.index(run.label) if run.label in BASELINES else len(BASELINES)
        return {FULL: 0, BLIND: 1}.get(run.method, 2), -tokens, first

    def _versus(self, run: Run, base: Run | None) -> Difference | None:
        return run.difference(base) if base is not None else None


def _corrected(found: Sequence[Difference | None]) -> list[float | None]:
    adjusted = iter(holm([difference.p for difference in found if difference is not None]))
    return [next(adjusted) if difference is not None else None for difference in found]


def _short(labels: Sequence[str]) -> list[str]:
    """Labels whose options show only the last part of a path, where that still tells them apart."""
    short = {label: re.sub(r"(?<==)('?)[^=,()']*/(?=[^/])", r"\1", label) for label in labels}
    shared = Counter(short.values())
    return [short[label] if shared[short[label]] == 1 else label for label in labels]


def _row(
    group: Group,
    run: Run,
    label: str,
    full: Difference | None,
    random: Difference | None,
    p_full: float | None,
    p_random: float | None,
) -> Row | None:
    accuracy = run.accuracy()
    if accuracy is None:  # nothing was answered
        return None
    relative = group.full is not None and run is not group.full
    scores = {task: run.accuracy(task) for task in group.tasks}
    group_a, why_not = group.beyond_downsampling(run)
    return Row(
        label=label,
        keep=run.keep,
        tokens_in=run.mean("tokens_in"),
        tokens=run.mean("tokens_out"),
        average=run.mean("tokens_mean"),
        flops=run.mean("flops", 1),
        flops_share=run.share("flops"),
        kv=run.mean("kv_bytes", 1),
        kv_share=run.share("kv_bytes"),
        ttft_ms=run.timing.get("ttft_ms"),
        speedup=SpeedUp(**found) if (found := run.timing.get("speedup")) else None,
        decode=run.timing.get("decode_tokens_per_s"),
        picture_ms=1000 / found if (found := run.timing.get("pictures_per_s")) else None,
        peak=run.timing.get("peak_bytes"),
        cache=run.timing.get("cache_bytes"),
        accuracy=accuracy,
        retention=run.retention(group.full) if relative and group.full else None,
        loyalty=run.loyalty(group.full) if relative and group.full else None,
        tokdense=run.tokdense,
        versus_full=full,
        versus_random=random,
        p_full=p_full,
        p_random=p_random,
        group_a=group_a,
        why_not=why_not,
        full_cost=run.full_cost,
        least=run.least,
        tasks={task: score for task, score in scores.items() if score is not None},
        extras={task: dict(found) for task, found in run.extras.items()},
        broken=len(run.broken),
        command=command(run.config, run.timing.get("samples") or 0),
    )


def find(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Folders of finished runs at or below `paths`, and a sentence about each that is not finished.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or no finished run in one.
    """
    found: dict[Path, None] = {}
    notes = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}: give folders that `vtc eval` wrote")
        runs = sorted(file.parent for file in path.rglob(CONFIG) if is_run(file.parent))
        done = [run for run in runs if (run / METRICS).is_file()]
        notes += [f"{run} is not finished and left out: give its command again" for run in runs if run not in done]
        if not done:
            what = "no finished run" if runs else "no run of `vtc eval`"
            raise ValueError(f"{path} holds {what}")
        found |= dict.fromkeys(run.resolve() for run in done)
    return list(found), notes


def load(paths: Sequence[str | Path]) -> list[Group]:
    """Groups of comparable runs, in the order of their folders. What was run twice counts once, the first time."""
    groups: dict[str, dict[tuple, Run]] = {}
    for path in paths:
        run = Run.read(Path(path))
        same = groups.setdefault(repr([run.config.get(name) for name in _SAME]), {})
        same.setdefault((run.label, repr(run.keep)), run)
    return [Group(tuple(runs.values())) for runs in groups.values()]


def frontier(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of the points that no other is both as cheap and better than, from cheap to dear."""
    best, chosen = float("-inf"), []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if values[i] > best:
            best = values[i]
            chosen.append(i)
    return chosen
