"""Batches of questions through a vision-language model: encoded once, answered with each method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch

import vtc
from vtc.cost import DecoderCost
from vtc.eval.asking import Asker, Batch, Item, Specs, about, grey, out_of_memory
from vtc.eval.datasets import Dataset
from vtc.eval.metrics import Scorer
from vtc.eval.questions import Question, letter
from vtc.eval.settings import BLIND, Settings, Spec
from vtc.eval.store import Line
from vtc.media.prompts import picture_inputs, visual_ids
from vtc.models import adapter_for

__all__ = ["Answerer", "Batch", "Item", "out_of_memory"]

_SLACK = 4  # tokens an answer may run over the longest reference of its task
_SHORTEST = 32  # tokens that any answer may have


@dataclass(frozen=True)
class _Ready:
    """A batch as `generate` takes it."""

    inputs: dict[str, Any]
    length: int  # of the prompts, padded
    tokens: list[int]  # prompt tokens per row
    visual: list[int]  # of these, visual ones; or those beside the row
    beside: list[int]  # what stands beside each row, padding included, which is no prompt token


class Answerer(Asker):
    """Asks a model that writes its answers.

    Args:
        scorers: task -> scorer. metrics: task -> its name.
    """

    def __init__(
        self, model: Any, processor: Any, settings: Settings, scorers: Mapping[str, Scorer], metrics: Mapping[str, str]
    ) -> None:
        super().__init__(model, settings)
        self.processor, self.scorers, self.metrics = processor, scorers, metrics
        parameters = inspect.signature(type(model).forward).parameters
        self._takes_encoded = "mm_encoder_outputs" in parameters and adapter_for(model).apart
        table = model.get_input_embeddings().weight
        self._cost = DecoderCost.of(model.config.get_text_config(), table.element_size())
        self._visual = visual_ids(processor)

    @property
    def kind(self) -> str:
        return self.model.config.model_type

    def check(self, specs: Sequence[Spec], data: Dataset) -> None:
        """Refuse now, and not after minutes of work, what the model cannot do."""
        kinds = data.kinds
        for kind in kinds:
            vtc.prompt(self.processor, "?", int(kind == "image"), int(kind == "video"))
        if "video" in kinds and not any(map(find_spec, ("decord", "av"))):
            raise ImportError("reading videos needs decord or PyAV: pip install 'vtc-vlm[video]'")
        fitting = {info.name for info in vtc.list_methods() if {*info.modality} & {*kinds}}
        what = "videos" if kinds == ["image"] else "pictures"
        for name in dict.fromkeys(spec.method for spec in specs if spec.wraps and spec.method not in fitting):
            self.notes.append(f"{name} is for {what} only, and no question is about any: it changes nothing")
        for spec in specs:
            with self.compressed(spec):
                pass

    def compressed(self, spec: Spec) -> Any:
        """The model with the method of a run at work, for the length of a with block."""
        return vtc.wrapped(self.model, spec.methods()) if spec.wraps else nullcontext()

    def batches(self, questions: Sequence[Question]) -> list[Batch]:
        """The same batches for the same questions, whoever answers them: by kind of media and by length of answers."""
        limits: dict[str, int] = {}
        for q in questions:
            longest = max(len(self.processor.tokenizer(answer)["input_ids"]) for answer in q.answers)
            limits[q.task] = max(limits.get(q.task, _SHORTEST), longest + _SLACK)
        if self.settings.max_new_tokens is not None:
            limits = dict.fromkeys(limits, self.settings.max_new_tokens)
        groups: dict[tuple[str, int], list[Question]] = {}
        for q in questions:  # short tasks together: none waits for a caption to end
            groups.setdefault((q.media.kind, limits[q.task]), []).append(q)
        size, found = self.settings.batch_size, []
        for (_, limit), own in sorted(groups.items()):  # in their order: questions about one clip stand together
            found += [Batch(tuple(own[i : i + size]), limit) for i in range(0, len(own), size)]
        return found

    def measure(
        self, specs: Sequence[Spec], questions: Sequence[Question], progress: Callable[[int, int], None]
    ) -> dict[Spec, dict[str, Any]]:
        """As `vtc.eval.timing.measure`."""
        from vtc.eval.timing import measure

        return measure(self, specs, questions, self.settings.timing, progress)

    def read(self, question: Question) -> Any:
        """The picture, or the frames of the video, that a question is about."""
        if question.media.kind == "image":
            return question.media.picture()
        assert question.media.file is not None
        return vtc.load_clip(question.media.file, self.settings.frames, self.settings.fps)

    def text(self, question: Question) -> str:
        """The question as the model is asked it: with its options and with the instruction, if there are any."""
        options = [f"{letter(i)}. {choice}" for i, choice in enumerate(question.choices)]
        if options and not self.settings.instruction:
            options.append("Answer with the option's letter from the given choices directly.")
        return "\n".join(
            [question.question, *options, *([self.settings.instruction] if self.settings.instruction else [])]
        )

    def shown(self, items: Sequence[Item], spec: Spec) -> list[tuple[list[Item], dict[str, Any]]]:
        """What a run shows to the processor, in parts that it takes with the same options: items, options."""
        if spec.method == BLIND:
            return [([replace(item, seen=grey(item.seen)) for item in items], {})]
        if not spec.resizes:
            return [(list(items), {})]
        assert spec.keep is not None
        small: dict[str, vtc.Resized] = {}
        parts: dict[str, tuple[list[Item], dict[str, Any]]] = {}
        for item in items:
            name = item.question.media.name
            if name not in small:
                small[name] = vtc.downsample(item.seen, self.processor, spec.keep)
            own = parts.setdefault(repr(small[name].options), ([], small[name].options))
            own[0].append(replace(item, seen=small[name].media, resized=small[name]))
        return list(parts.values())

    def processed(self, items: Sequence[Item], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the processor makes of some questions, padded on the left, on the model's device."""
        seen = [item.seen for item in items]
        video = items[0].question.media.kind == "video"
        texts = [vtc.prompt(self.processor, self.text(i.question), int(not video), int(video)) for i in items]
        if video:  # its frames are chosen already
            given = vtc.clip_inputs(self.processor, seen)
        else:
            given = picture_inputs(self.processor, [[picture] for picture in seen])
        given |= options or {}
        made = self.processor(text=texts, **given, padding=True, padding_side="left", return_tensors="pt")
        moved = made.to(self.model.device, self.model.dtype)
        return {name: value for name, value in moved.items() if isinstance(value, torch.Tensor)}

    @torch.inference_mode()
    def _prepare(self, items: Sequence[Item], specs: Specs, options: Mapping[str, Any] | None = None) -> _Ready:
        inputs = self.processed(items, options)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        visual = torch.isin(ids, torch.tensor(self._visual, device=ids.device)).sum(dim=1).tolist()
        memory, beside = adapter_for(self.model).memory(self.model, inputs), [0] * len(ids)
        if memory is not None:
            visual, beside = zip(*((memory.tokens(row), memory.whole(row)) for row in range(len(ids))), strict=True)
        if (
            self._takes_encoded and specs is not None
        ):  # the tower runs once for all methods and all questions about one thing
            methods = [method for s in specs if s.wraps and not s.own_tower_run for method in s.methods()]
            first: dict[str, int] = {}  # of each thing asked about, in reading order
            for number, item in enumerate(items):
                first.setdefault(item.question.media.name, number)
            own = inputs
            if len(first) < len(items):
                own = self.processed([items[number] for number in first.values()], options)
            encoded = vtc.encode(self.model, methods or "random", **own)
            text = {name: value for name, value in inputs.items() if value.shape == ids.shape}
            order = list(first)
            inputs = {**text, **encoded.take([order.index(item.question.media.name) for item in items])}
        return _Ready(inputs, ids.shape[1], mask.sum(dim=1).tolist(), [*visual], [*beside])

    @torch.inference_mode()
    def _generate(self, items: Sequence[Item], ready: _Ready, spec: Spec, limit: int) -> list[Line]:
        with self.compressed(spec):
            out = self.model.generate(**ready.inputs, max_new_tokens=limit, do_sample=False, num_beams=1)
            rows = vtc.report(self.model).rows if spec.wraps else None
        said = self.processor.batch_decode(out[:, ready.length :], skip_special_tokens=True)
        lines = []
        for i, (item, text) in enumerate(zip(items, said, strict=True)):
            question, answer = item.question, text.strip()
            line = about(question) | {
                "question": question.question,
                "references": list(question.answers),
                "answer": answer,
                "metric": self.metrics[question.task],
                "score": round(self.scorers[question.task](answer, question), 6),
            }
            if rows is None:
                own = ready.visual[i]
                whole = item.resized.whole if item.resized else own
                beside, now = ready.beside[i], ready.tokens[i]
                lengths = now if beside else now - own + whole, now  # of the prompt, uncompressed and as it is
                line |= {"tokens_in": whole, "tokens_out": own, "tokens_mean": own}
                line |= {"flops": [self._cost.prefill_flops(n, beside) for n in lengths]}
                line |= {"kv_bytes": [self._cost.kv_bytes(n, beside) for n in lengths]}
                if item.resized and item.resized.full_cost:
                    line["full_cost"] = True
                if item.resized and item.resized.least:
                    line["least"] = True
            else:
                row = rows[i]
                line |= {"tokens_in": row.tokens_in, "tokens_out": row.tokens_out}
                line |= {"tokens_mean": round(row.tokens_average, 4)}
                line |= {"flops": list(row.flops), "kv_bytes": list(row.kv_bytes)}
            if notes := getattr(item.seen, "notes", None):
                line["notes"] = list(notes)
            lines.append(line)
        return lines
