"""From samples to numbers: accuracy, retention, loyalty, TokDense, cost, and paired differences."""

from __future__ import annotations

import math
import statistics as st
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtc.eval.datasets import Dataset
from vtc.eval.metrics import METRICS
from vtc.eval.normalise import normalise
from vtc.eval.settings import Spec
from vtc.eval.statistics import Difference, Score, average, paired, ratio
from vtc.eval.store import SAMPLES, Line, read_run
from vtc.methods.base.notation import write_method


@dataclass(frozen=True)
class Run:
    """The samples of one run, with what its configuration says.

    Attributes:
        config: see `vtc.eval.runner`. timing: see `vtc.eval.timing.measure`; may be empty.
    """

    config: Mapping[str, Any]
    lines: Mapping[str, Line]  # by question id, those that were answered
    broken: Mapping[str, str]  # id -> reason
    timing: Mapping[str, Any]
    extras: Mapping[str, Mapping[str, float]]  # task -> numbers of its metric over all answers

    @classmethod
    def of(cls, spec: Spec, data: Dataset, names: Mapping[str, str], lines: Sequence[Line]) -> Run:
        """A run that has just been answered; `lines` in the order of the data set."""
        good = {line["id"]: line for line in lines if "error" not in line}
        broken = {line["id"]: line["error"] for line in lines if "error" in line}
        extras = {}
        for task, name in names.items():
            pairs = [(good[q.id]["answer"], q) for q in data.questions if q.task == task and q.id in good]
            if pairs and (found := METRICS[name].summary(pairs)):
                extras[task] = found
        config = {"model": spec.model, "method": spec.label, "keep": spec.keep, "metrics": names}
        return cls(config, good, broken, {}, extras)

    @classmethod
    def read(cls, folder: Path) -> Run:
        """A run from its folder, which must be finished.

        Raises:
            ValueError: its samples are not those that it ended with; names the file and what is wrong.
        """
        config, lines, metrics = read_run(folder)
        if wrong := _damage(lines, config["questions"]):
            raise ValueError(
                f"{folder / SAMPLES} is damaged: {wrong}; remove the folder {folder}, and give the command of its "
                "`vtc eval` again"
            )
        if config["format"] == 1:  # had the options beside the name
            config |= {"method": write_method(config["method"], config.pop("options"))}
        good = {line["id"]: line for line in lines if "error" not in line}
        broken = {line["id"]: line["error"] for line in lines if "error" in line}
        extras = {task: own["extras"] for task, own in metrics["tasks"].items() if own.get("extras")}
        return cls(config, good, broken, metrics.get("timing") or {}, extras)

    @property
    def method(self) -> str:
        """Its name alone."""
        return self.label.partition("(")[0]

    @property
    def label(self) -> str:
        """The method and its options."""
        return self.config["method"]

    @property
    def keep(self) -> int | float | None:
        return self.config["keep"]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(line["task"] for line in self.lines.values()))

    @property
    def full_cost(self) -> bool:
        """Whether pictures that were made smaller were made larger again, and have cost more tokens than asked for."""
        return any(line.get("full_cost") for line in self.lines.values())

    @property
    def least(self) -> list[int]:
        """Numbers of tokens of videos that were made as small as they can be, which is more than was asked for."""
        return sorted({line["tokens_out"] for line in self.lines.values() if line.get("least")})

    def mean(self, name: str, part: int | None = None) -> float:
        """Mean per question of a number that samples carry."""
        values = [line[name] if part is None else line[name][part] for line in self.lines.values()]
        return st.fmean(values) if values else 0.0

    def share(self, name: str) -> float:
        """Of the uncompressed model's FLOPs or bytes."""
        full = self.mean(name, 0)
        return self.mean(name, 1) / full if full else 1.0

    def accuracy(self, task: str | None = None, among: Collection[str] | None = None) -> Score | None:
        """Mean score, overall, of a task, or of some questions."""
        lines = [
            line for i, line in self.lines.items() if task in (None, line["task"]) and (among is None or i in among)
        ]
        if not lines:
            return None
        return average([line["score"] for line in lines], [line["media"] for line in lines])

    def beside(self, base: Run, task: str | None = None) -> tuple[list[Line], list[Line], list[str]]:
        """The questions that both have answered: own samples, the other's, and what each is about."""
        both = [i for i, line in self.lines.items() if i in base.lines and task in (None, line["task"])]
        mine, theirs = [self.lines[i] for i in both], [base.lines[i] for i in both]
        return mine, theirs, [line["media"] for line in mine]

    def difference(self, base: Run, task: str | None = None) -> Difference | None:
        """Mean of the paired differences of scores, with its interval and p-value."""
        mine, theirs, groups = self.beside(base, task)
        return paired([m["score"] for m in mine], [t["score"] for t in theirs], groups) if mine else None

    def retention(self, full: Run, task: str | None = None) -> Score | None:
        """Accuracy as a share of the uncompressed model's."""
        mine, theirs, groups = self.beside(full, task)
        return ratio([m["score"] for m in mine], [t["score"] for t in theirs], groups) if mine else None

    def loyalty(self, full: Run, task: str | None = None) -> Score | None:
        """Share of answers that are those of the uncompressed model, after normalisation; needs no labels."""
        mine, theirs, groups = self.beside(full, task)
        same = [float(normalise(m["answer"]) == normalise(t["answer"])) for m, t in zip(mine, theirs, strict=True)]
        return average(same, groups) if mine else None

    @property
    def tokdense(self) -> float | None:
        """Accuracy in points per visual token (VQToken, NeurIPS 2025), tokens being the mean over decoder layers."""
        accuracy, tokens = self.accuracy(), self.mean("tokens_mean")
        return 100 * accuracy.mean / tokens if accuracy and tokens else None


_NUMBERS = ("score", "tokens_in", "tokens_out", "tokens_mean")
_PAIRS = ("flops", "kv_bytes")  # of the uncompressed model, and own


def _damage(lines: Sequence[Line], questions: int) -> str | None:
    """What is wrong with the samples of a finished run that asked so many questions."""
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if line["id"] in seen:
            return f"line {number} repeats the question {line['id']!r}"
        seen.add(line["id"])
        if lacks := _lacks(line):
            return f"line {number} (question {line['id']!r}) has no proper {', '.join(lacks)}"
    return f"it has {len(lines)} of {questions} questions" if len(lines) != questions else None


def _lacks(line: Line) -> list[str]:
    """Fields that a sample should have and has not, or not in their form."""
    texts = ("task", "media", "error") if "error" in line else ("task", "media", "answer")
    lacks = [name for name in texts if not isinstance(line.get(name), str)]
    if "error" in line:
        return lacks
    lacks += [name for name in _NUMBERS if not _is_number(line.get(name))]
    pairs = {name: line.get(name) for name in _PAIRS}
    return lacks + [
        name
        for name, pair in pairs.items()
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def metrics_of(
    run: Run, data: Dataset, full: Run, random: Run | None, timing: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The content of a run's metrics.json. All but costs are fractions, with 95 % intervals."""

    def part(task: str | None) -> dict[str, Any]:
        compressed = run is not full
        found: dict[str, Any] = {"accuracy": run.accuracy(task)}
        if compressed:
            found |= {"retention": run.retention(full, task), "loyalty": run.loyalty(full, task)}
            found["versus_full"] = run.difference(full, task)
        if compressed and random is not None and run is not random:
            found["versus_random"] = run.difference(random, task)
        return {name: asdict(value) if isinstance(value, Score) else value for name, value in found.items()}

    tasks = {
        task: {"metric": run.config["metrics"][task], **part(task), "extras": run.extras.get(task, {})}
        for task in data.tasks
    }
    tokens = {name: round(run.mean(f"tokens_{name}"), 4) for name in ("in", "out", "mean")}
    costs = {name: {"full": run.mean(name, 0), "own": run.mean(name, 1)} for name in ("flops", "kv_bytes")}
    return {
        "questions": len(run.lines) + len(run.broken),
        "broken": dict(run.broken),
        **part(None),
        "tokdense": run.tokdense,
        "tokens": tokens,
        **costs,
        "timing": dict(timing) if timing else None,
        "tasks": tasks,
    }
