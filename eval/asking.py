"""What all that is asked of a batch has in common: read, answer with each method; what breaks is told apart."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

import vtc
from vtc.eval.datasets import Dataset
from vtc.eval.questions import Question
from vtc.eval.settings import BLIND, Settings, Spec
from vtc.eval.store import Line

_GREY = 127

Outcome = tuple[Spec, list[Line]]
Specs = Sequence[Spec] | None


@dataclass(frozen=True)
class Item:
    """A question whose picture or video has been read."""

    question: Question
    seen: Any  # Image or Clip
    resized: vtc.Resized | None = None  # how `seen` was made, where that is the method


@dataclass(frozen=True)
class Batch:
    """Questions that are answered together, of one kind of media."""

    questions: tuple[Question, ...]
    limit: int  # most new tokens

    @property
    def ids(self) -> list[str]:
        return [question.id for question in self.questions]


class Asker(ABC):
    """Asks one model. `answer` yields as it goes, so that whoever listens can write at once."""

    def __init__(self, model: Any, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.largest = settings.batch_size  # goes down when memory runs out
        self.notes: list[str] = []

    @property
    @abstractmethod
    def kind(self) -> str:
        """Of the model, as its own library calls it."""

    @abstractmethod
    def check(self, specs: Sequence[Spec], data: Dataset) -> None:
        """Refuse now, and not after minutes of work, what the model cannot do."""

    @abstractmethod
    def batches(self, questions: Sequence[Question]) -> list[Batch]:
        """The same batches for the same questions, whoever answers them."""

    @abstractmethod
    def read(self, question: Question) -> Any:
        """The picture, or the frames of the video, that a question is about."""

    @abstractmethod
    def shown(self, items: Sequence[Item], spec: Spec) -> list[tuple[list[Item], dict[str, Any]]]:
        """What a run shows to the model, in parts that it takes with the same options: items, options."""

    @abstractmethod
    def _prepare(self, items: Sequence[Item], specs: Specs, options: Mapping[str, Any] | None = None) -> Any:
        """What `_generate` takes of some items. `specs`: the runs that share one run of the tower; None = none does."""

    @abstractmethod
    def _generate(self, items: Sequence[Item], ready: Any, spec: Spec, limit: int) -> list[Line]:
        """A run's samples."""

    @abstractmethod
    def measure(
        self, specs: Sequence[Spec], questions: Sequence[Question], progress: Callable[[int, int], None]
    ) -> dict[Spec, dict[str, Any]]:
        """The times of each run, see `vtc.eval.timing.measure`."""

    def answer(self, batch: Batch, specs: Sequence[Spec]) -> Iterator[Outcome]:
        """Yield each run's samples, part by part; what cannot be answered gives a sample with its "error"."""
        items, broken = [], []
        looked: dict[str, Any] = {}  # several questions are about one clip
        for question in batch.questions:
            name = question.media.name
            try:
                if name not in looked:
                    looked[name] = self.read(question)
                items.append(Item(question, looked[name]))
            except ImportError:  # the machine's failure, not the question's
                raise
            except Exception as error:  # decoders of pictures raise all kinds
                broken.append(failure(question, error))
        if broken:
            yield from ((spec, broken) for spec in specs)
        parts: dict[int, list[Item]] = {}
        for item in items:  # some processors stack videos, so a batch of them has one length
            parts.setdefault(len(item.seen) if item.question.media.kind == "video" else 0, []).append(item)
        for part in parts.values():
            step = min(self.largest, len(part))
            for start in range(0, len(part), step):
                yield from self._work(part[start : start + step], specs, batch.limit)

    def _work(self, items: list[Item], specs: Sequence[Spec], limit: int) -> Iterator[Outcome]:
        shared: dict[bool, Any] = {}  # by all runs that show what there is: encoded already, or not
        for spec in specs:
            problem = ""
            lines: list[Line] = []
            try:
                if spec.method == BLIND or spec.resizes:
                    for part, options in self.shown(items, spec):
                        lines += self._generate(part, self._prepare(part, (), options), spec, limit)
                else:
                    alone = spec.own_tower_run
                    if alone not in shared:
                        shared[alone] = self._prepare(items, None if alone else specs)
                    lines = self._generate(items, shared[alone], spec, limit)
            except ImportError:  # the machine's failure, not the question's
                raise
            except Exception as error:  # of any kind: a question that breaks the model is told apart by halving
                problem = reason_of(error)
                if out_of_memory(error):
                    shared = {}
                    self._shrink(len(items))
            if not problem:
                yield spec, lines
            elif len(items) == 1:
                yield spec, [{**failure(items[0].question, problem), "asked": True}]
            else:
                half = (len(items) + 1) // 2
                yield from self._work(items[:half], [spec], limit)
                yield from self._work(items[half:], [spec], limit)

    def _shrink(self, size: int) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if 1 < size <= self.largest:
            self.largest = (size + 1) // 2
            self.notes.append(f"out of memory with {size} questions at a time: going on with {self.largest}")


def grey(seen: Any) -> Any:
    if isinstance(seen, Image.Image):
        return Image.new("RGB", seen.size, (_GREY,) * 3)
    return replace(seen, frames=np.full_like(seen.frames, _GREY))


def out_of_memory(error: BaseException) -> bool:
    """Whether fewer questions at a time might help."""
    said = str(error).lower()
    told = isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


def about(question: Question) -> Line:
    media = question.media
    return {"id": question.id, "task": question.task, "media": media.name if media.of is None else media.of}


def failure(question: Question, problem: str | BaseException) -> Line:
    return about(question) | {"error": problem if isinstance(problem, str) else reason_of(problem)}


def reason_of(error: BaseException) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
