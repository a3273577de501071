"""Batches of samples to train on, each picture and clip encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.encoded import Encoded
from vtc.media.pictures import load_picture
from vtc.media.prompts import prepare, prompt
from vtc.media.video import load_clip
from vtc.methods.base.method import Method
from vtc.training.samples import Sample

IGNORED = -100  # label of what is not to be predicted
TOGETHER = 4  # questions about one picture or clip that stay together, so that it is encoded and chosen from once


@dataclass(frozen=True, eq=False)
class Sight:
    """One encoded picture or clip: the ids that stand for it in a prompt.

    Ids `before` to `after`, counted from the placeholder, become `ids`; `types` are their modalities (1 = image,
    2 = video tokens), where the model asks for them.
    """

    encoded: Encoded
    before: int
    after: int
    ids: list[int]
    types: dict[int, int] | None


class Batches:
    """Batch number `step` of an endless, shuffled run through samples: a pure function of seed and step.

    Every picture and clip is encoded once for all of a batch's questions about it, and kept for later batches as long
    as `cache_bytes` allow.

    Args:
        frames, fps: as `vtc.load_clip`.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        method: Method,
        samples: Sequence[Sample],
        batch_size: int,
        seed: int,
        frames: int | None = None,
        fps: float | None = None,
        cache_bytes: float = 2e9,
    ) -> None:
        self.model, self.processor, self.method = model, processor, method
        self.samples, self.size, self.seed = list(samples), min(batch_size, len(samples)), seed
        self.frames, self.fps, self.room = frames, fps, cache_bytes
        self.cache: dict[Path, Sight] = {}
        self.order: tuple[int, list[int]] = (-1, [])
        config: Any = getattr(model, "generation_config", None)
        end = getattr(config, "eos_token_id", None)
        end = end[0] if isinstance(end, list) else end
        end = processor.tokenizer.eos_token_id if end is None else end
        self.end = [] if end is None else [end]

    def __call__(self, step: int) -> dict[str, Any]:
        """Inputs of the model, padded on the left, and `labels` [B, L] with -100 where nothing is asked."""
        epoch, number = divmod(step, len(self.samples) // self.size)
        if self.order[0] != epoch:
            self.order = (epoch, self._shuffled(epoch))
        chosen = [self.samples[i] for i in self.order[1][number * self.size : (number + 1) * self.size]]
        sights: dict[Path, Sight] = {}
        for sample in chosen:
            path = _path(sample)
            if path not in sights:
                sights[path] = self.cache.get(path) or self._look(sample)
        rows = [self._row(sample, sights[_path(sample)]) for sample in chosen]
        return self._padded(rows) | self._seen(chosen, sights)

    def _shuffled(self, epoch: int) -> list[int]:
        """All samples in an order of their own, those about one thing in small groups."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        about: dict[Path, list[int]] = {}
        for i in torch.randperm(len(self.samples), generator=random).tolist():
            about.setdefault(_path(self.samples[i]), []).append(i)
        groups = [own[i : i + TOGETHER] for own in about.values() for i in range(0, len(own), TOGETHER)]
        return [i for g in torch.randperm(len(groups), generator=random).tolist() for i in groups[g]]

    def _look(self, sample: Sample) -> Sight:
        """Run the vision tower, and see what the processor puts in the placeholder's stead."""
        text = prompt(self.processor, "?", int(sample.image is not None), int(sample.video is not None))
        if sample.image is not None:
            inputs = prepare(self.processor, "?", [load_picture(sample.image)])
        else:
            assert sample.video is not None
            inputs = prepare(self.processor, "?", clips=[load_clip(sample.video, self.frames, self.fps)])
        inputs = inputs.to(self.model.device, self.model.dtype)
        short, full = self.processor.tokenizer(text)["input_ids"], inputs["input_ids"][0].tolist()
        from vtc.engine.encoding import encode_with

        encoded = encode_with(self.model, [self.method], dict(inputs))
        types = inputs.get("mm_token_type_ids")
        token = self.processor.image_token if sample.image is not None else self.processor.video_token
        before, after, ids = expansion(short, full, self.processor.tokenizer.convert_tokens_to_ids(token))
        kinds = None if types is None else dict(zip(full, types[0].tolist(), strict=True))
        sight = Sight(encoded, before, after, ids, kinds)
        self.room -= encoded.size
        if self.room > 0:
            self.cache[_path(sample)] = sight
        else:
            self.room += encoded.size
        return sight

    def _row(self, sample: Sample, sight: Sight) -> tuple[list[int], list[int], list[int] | None]:
        """Ids of prompt and answer, labels, and modalities of one sample."""
        tokenizer = self.processor.tokenizer
        text = prompt(self.processor, sample.question, int(sample.image is not None), int(sample.video is not None))
        token = self.processor.image_token if sample.image is not None else self.processor.video_token
        ids = tokenizer(text)["input_ids"]
        at = ids.index(tokenizer.convert_tokens_to_ids(token))
        ids = ids[: at + sight.before] + sight.ids + ids[at + sight.after :]
        space = "" if text[-1].isspace() else " "
        answer = tokenizer(space + sample.answer, add_special_tokens=False)["input_ids"] + self.end
        types = None if sight.types is None else [sight.types.get(i, 0) for i in ids] + [0] * len(answer)
        return ids + answer, [IGNORED] * len(ids) + answer, types

    def _padded(self, rows: list[tuple[list[int], list[int], list[int] | None]]) -> dict[str, Tensor]:
        """Rows of a batch [B, L], padded on the left."""
        length = max(len(ids) for ids, _, _ in rows)
        fill = self.processor.tokenizer.pad_token_id or 0

        def aligned(values: Sequence[Sequence[int]], filler: int) -> Tensor:
            padded = [[filler] * (length - len(own)) + list(own) for own in values]
            return torch.tensor(padded, device=self.model.device)  # type: ignore[arg-type]

        batch = {
            "input_ids": aligned([ids for ids, _, _ in rows], fill),
            "attention_mask": aligned([[1] * len(ids) for ids, _, _ in rows], 0),
            "labels": aligned([labels for _, labels, _ in rows], IGNORED),
        }
        types = [own for _, _, own in rows if own is not None]
        if types:
            batch["mm_token_type_ids"] = aligned(types, 0)
        return batch

    def _seen(self, chosen: list[Sample], sights: dict[Path, Sight]) -> dict[str, Any]:
        """The encoded pictures and clips of a batch, each once, as the model takes them."""
        inputs: dict[str, Any] = {}
        for kind in ("image", "video"):
            paths = [path for sample in chosen if (path := getattr(sample, kind)) is not None]
            each = list(dict.fromkeys(paths))
            if each:
                taken = Encoded.join([sights[path].encoded for path in each]).take([each.index(path) for path in paths])
                outputs = inputs.get("mm_encoder_outputs", {}) | taken["mm_encoder_outputs"]
                inputs |= taken | {"mm_encoder_outputs": outputs}
        return inputs


def _path(sample: Sample) -> Path:
    path = sample.image or sample.video
    assert path is not None
    return path


def expansion(short: list[int], full: list[int], token: int) -> tuple[int, int, list[int]]:
    """How the placeholder `token` of a prompt `short` was spelled out in `full`.

    Returns:
        (before, after, ids): with the placeholder at i, short[i + before : i + after] has become `ids`.
    """
    at = short.index(token)
    most, head, tail = min(len(short), len(full)), 0, 0
    while head < most and short[head] == full[head]:
        head += 1
    while tail < most - head and short[-1 - tail] == full[-1 - tail]:
        tail += 1
    return head - at, len(short) - tail - at, full[head : len(full) - tail]
