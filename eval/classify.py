"""Batches of pictures through a bare classifier (timm), which answers with the name of a class.

Methods of the stage `encoder` are wrapped around the model (`vtc.wrap`). Those of the stage `input` have no language
model to stand before: they choose among the patches as they come from the patch embedding, with their positions added,
so that all blocks are spared; those that need more than that, such as attention, cannot be asked for. `downsample`
makes the picture smaller, to the largest grid of patches of its shape that the budget holds; the model resamples its
positions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vtc
from vtc.budget import fitted_grid, token_count
from vtc.engine.per_crop import select_scoped
from vtc.eval.asking import Asker, Batch, Item, Specs, about, grey
from vtc.eval.datasets import Dataset
from vtc.eval.metrics import Scorer
from vtc.eval.questions import Question
from vtc.eval.settings import BLIND, FULL, Settings, Spec
from vtc.eval.store import Line
from vtc.layout import single_span
from vtc.methods.base.method import Method
from vtc.methods.base.registry import resolve
from vtc.models.classifier import Preparation
from vtc.selection import Selection
from vtc.signals import VisualTokens, given_signals
from vtc.speedup import speed_up

_KNOWN = {"grid"}  # signals that there are before the first block


class Classifier(Asker):
    """Asks a timm `VisionTransformer` what it sees.

    Args:
        prepare: turns pictures into its input. scorers: task -> scorer. metrics: task -> its name.
    """

    def __init__(
        self,
        model: Any,
        prepare: Preparation,
        settings: Settings,
        scorers: Mapping[str, Scorer],
        metrics: Mapping[str, str],
    ) -> None:
        super().__init__(model, settings)
        if not isinstance(model, VisionTransformer):
            raise ValueError(
                f"this classifier is a {type(model).__name__}, and what is compressed are the patches of timm's "
                "VisionTransformer: give a model of that class"
            )
        self.prepare, self.scorers, self.metrics = prepare, scorers, metrics
        self.grid: tuple[int, int] = model.patch_embed.grid_size
        self._full = 0  # FLOPs of a picture, uncompressed

    @property
    def kind(self) -> str:
        return type(self.model).__name__

    def check(self, specs: Sequence[Spec], data: Dataset) -> None:
        """Refuse questions that are about no picture, or whose answers are no classes, and methods that need more than
        patches."""
        if data.kinds != ["image"]:
            raise ValueError(f"{specs[0].model} tells what a picture shows, and {data.name} has videos: leave them out")
        for question in data.questions:
            if strange := [answer for answer in question.answers if answer not in self.prepare.names]:
                raise ValueError(
                    f"{specs[0].model} tells {len(self.prepare.names)} classes apart, and the answer to question "
                    f"{question.id!r} of {data.name}, {strange[0]!r}, is none: they are {', '.join(self.prepare.names)}"
                )
        for spec in specs:
            with self.compressed(spec):
                pass

    def compressed(self, spec: Spec) -> Any:
        """The model with the method of a run at work, for the length of a with block."""
        if not spec.wraps:
            return nullcontext()
        if spec.within_tower:
            return vtc.wrapped(self.model, spec.method, spec.keep, **spec.options)
        method = resolve(spec.method, spec.keep, **spec.options)
        lacks = [name for name in method.requires() if name not in _KNOWN]
        if lacks or method.stage != "input":
            needs = f"the signals {', '.join(lacks)}" if lacks else "a language model"
            raise ValueError(f"{spec.label} needs {needs}, which {spec.model}, a bare classifier, has not")
        return _first_patches(self.model, method, self.grid)

    def batches(self, questions: Sequence[Question]) -> list[Batch]:
        """In their order."""
        size = self.settings.batch_size
        return [Batch(tuple(questions[i : i + size]), 0) for i in range(0, len(questions), size)]

    def read(self, question: Question) -> Any:
        return question.media.picture()

    def shown(self, items: Sequence[Item], spec: Spec) -> list[tuple[list[Item], dict[str, Any]]]:
        """As they are; grey; or with the size of a smaller input."""
        if spec.method == BLIND:
            return [([replace(item, seen=grey(item.seen)) for item in items], {})]
        return [(list(items), {"size": self._size(spec)} if spec.resizes else {})]

    def _size(self, spec: Spec) -> tuple[int, int]:
        """Pixels of the input whose patches are as many as the budget holds, in the proportions of the model's own."""
        assert spec.keep is not None
        rows, columns = fitted_grid(*self.grid, token_count(spec.keep, self.patches))
        high, wide = self.model.patch_embed.patch_size
        return rows * high, columns * wide

    @property
    def patches(self) -> int:
        """Of a picture of the model's own size."""
        return self.grid[0] * self.grid[1]

    def _prepare(self, items: Sequence[Item], specs: Specs, options: Mapping[str, Any] | None = None) -> Any:
        weight = next(self.model.parameters())
        return self.prepare([item.seen for item in items], (options or {}).get("size")).to(weight.device, weight.dtype)

    @torch.inference_mode()
    def _generate(self, items: Sequence[Item], ready: Tensor, spec: Spec, limit: int) -> list[Line]:
        self._full = self._full or _counted(self.model, ready.new_zeros(1, 3, *self.prepare.size))[0]
        with self.compressed(spec) as door:
            flops, logits = _counted(self.model, ready)
            kept = self._kept(spec, ready, door)
        lines = []
        for item, best, (left, mean) in zip(items, logits.argmax(-1).tolist(), kept, strict=True):
            question, answer = item.question, self.prepare.names[best]
            lines.append(
                about(question)
                | {
                    "question": question.question,
                    "references": list(question.answers),
                    "answer": answer,
                    "metric": self.metrics[question.task],
                    "score": round(self.scorers[question.task](answer, question), 6),
                    "tokens_in": self.patches,
                    "tokens_out": left,
                    "tokens_mean": round(mean, 4),
                    "flops": [self._full, flops // len(items)],
                    "kv_bytes": [0, 0],  # there is no cache
                }
            )
        return lines

    def _kept(self, spec: Spec, ready: Tensor, door: Any) -> list[tuple[int, float]]:
        """Patches behind the last block, and their mean over the blocks, of each picture of the last call."""
        if not spec.wraps:
            high, wide = self.model.patch_embed.patch_size
            own = (ready.shape[-2] // high) * (ready.shape[-1] // wide)
            return [(own, float(own))] * len(ready)
        if isinstance(door, list):
            return [(chosen.tokens_out, float(chosen.tokens_out)) for chosen in door]
        report: Any = vtc.report(self.model)
        mean = sum(report.tower.tokens_by_block) / len(report.tower.tokens_by_block) / len(ready)
        return [(span.tokens_out, mean) for span in report.spans]

    @torch.inference_mode()
    def measure(
        self, specs: Sequence[Spec], questions: Sequence[Question], progress: Callable[[int, int], None]
    ) -> dict[Spec, dict[str, Any]]:
        """Pictures per second of each run, a batch at a time, reading and resizing of pictures left out.

        As many batches as `timing` says, evenly spread and some of them again where there are fewer, go through all
        runs in turn, every other one in reverse; each run does the first one once before, which does not count.

        Returns:
            per run `pictures_per_s` (of the median batch), `samples` (batches), and `speedup` over the uncompressed run
            (see `vtc.speedup.SpeedUp`; None where that was not timed, or too few batches were).
        """
        timed = [spec for spec in specs if spec.method != BLIND]
        batches = self.batches(questions)
        step = max(1, len(batches) // self.settings.timing)
        chosen = [batches[number * step % len(batches)] for number in range(self.settings.timing if batches else 0)]
        seconds: dict[Spec, list[float]] = {spec: [] for spec in timed}
        for number, batch in enumerate(chosen):
            items = [Item(question, self.read(question)) for question in batch.questions]
            for position, spec in enumerate(timed if number % 2 == 0 else reversed(timed)):
                [(shown, options)] = self.shown(items, spec)
                ready = self._prepare(shown, (), options)
                with self.compressed(spec):
                    if number == 0:
                        _seconds(self.model, ready)
                    seconds[spec].append(_seconds(self.model, ready) / len(items))
                progress(number * len(timed) + position + 1, len(chosen) * len(timed))
        full = next((each for spec, each in seconds.items() if spec.method == FULL), None)
        if not chosen:
            return {}
        return {
            spec: {
                "pictures_per_s": round(1 / statistics.median(each), 2),
                "samples": len(each),
                "speedup": asdict(found) if spec.compressed and full and (found := speed_up(full, each)) else None,
            }
            for spec, each in seconds.items()
        }


def _seconds(model: Any, pixels: Tensor) -> float:
    start = time.perf_counter()
    model(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize(pixels.device)
    return time.perf_counter() - start


def _counted(model: Any, pixels: Tensor) -> tuple[int, Tensor]:
    """FLOPs of a call, by torch's own counter, and its logits."""
    with FlopCounterMode(display=False) as counter:
        logits = model(pixels)
    return counter.get_total_flops(), logits


@contextmanager
def _first_patches(model: Any, method: Method, grid: tuple[int, int]) -> Iterator[list[Selection]]:
    """The model with a method that chooses among the patches before the first block; yields what it chose last, which
    are selections by picture."""
    span = single_span(grid[0] * grid[1], (1, *grid))
    chosen: list[Selection] = []

    def shorten(module: Any, inputs: Any, rows: Tensor) -> Tensor:
        index = torch.arange(span.tokens, device=rows.device)
        special, patches = rows[:, : model.num_prefix_tokens], rows[:, model.num_prefix_tokens :]
        many = [VisualTokens(own, span, index, given_signals({}, span.tokens, rows.device, 1)) for own in patches]
        chosen[:] = [found.sorted().check() for found in select_scoped(method, many)]
        kept = torch.stack([found.apply(own) for found, own in zip(chosen, patches, strict=True)])
        return torch.cat([special, kept], 1)

    handle = model.norm_pre.register_forward_hook(shorten)  # behind the positions, before the blocks
    try:
        yield chosen
    finally:
        handle.remove()
