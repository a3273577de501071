"""Cells of the matrices of what a wrapped model must survive, and what to compare: answers, and what a report says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.families import FAMILIES, batch

GREEDY: dict[str, Any] = dict(max_new_tokens=4, do_sample=False)
VIDEOS = [name for name, family in FAMILIES.items() if family.videos is not None]
#: name -> a method, or methods that act one after another; of each stage and kind
METHODS: dict[str, Callable[[], Any]] = {
    "divprune": lambda: vtc.DivPrune(keep=0.4),
    "divprune, compact": lambda: vtc.DivPrune(keep=0.4, positions="compact"),
    "vtc-cls": lambda: vtc.VTCCLS(keep=0.4),
    "visionzip": lambda: vtc.VisionZip(keep=0.4),
    "fastv": lambda: vtc.FastV(keep=0.4, layers=(1,)),
    "dart": lambda: vtc.DART(keep=0.4),
    "transprune": lambda: vtc.TransPrune(keep=0.2, layers=(1, 2)),
    "sparsevlm": lambda: vtc.SparseVLM(keep=0.3, layers=(1, 2), recycle=1.0),
    "visiondrop": lambda: vtc.VisionDrop(keep=0.4),
    "h2o": lambda: vtc.H2O(keep=0.4),
    "h2o, all, every": lambda: vtc.H2O(keep=0.4, scope="all", every=3),
    "streaming": lambda: vtc.Streaming(keep=0.4, sinks=2),
    "adakv": lambda: vtc.AdaKV(keep=0.4, window=6),
    "lookm": lambda: vtc.LookM(keep=0.4),
    "minicache": lambda: vtc.MiniCache(),
    "input + layer + cache": lambda: [
        vtc.VTCCLS(keep=0.6),
        vtc.TransPrune(keep=0.2, layers=(1, 2)),
        vtc.H2O(keep=0.1),
    ],
    "dycoke": lambda: vtc.DyCoke(keep=0.6),
    "quota": lambda: vtc.QuoTA(keep=0.3),
}
OF_VIDEOS = ("dycoke", "quota")


def fits(family: str, method: str) -> bool:
    """Whether the method has anything to do on this family."""
    return method not in OF_VIDEOS or family in VIDEOS


def cells(first: Iterable[str], second: Iterable[str], fit: Callable[[str, str], bool] = fits) -> list[Any]:
    """Parameters of every pair that fits. Few pairs that hold each name at least once stay in the default run: walking
    along diagonals, those that bring something new; the others are marked `full`."""
    first, second = list(first), list(second)
    pairs = [
        (one, second[(i + step) % len(second)])
        for step in range(len(second))
        for i, one in enumerate(first)
        if fit(one, second[(i + step) % len(second)])
    ]
    seen: tuple[set[str], set[str]] = set(), set()
    default = set()
    for pair in sorted(pairs, key=lambda pair: pair[1] not in OF_VIDEOS):  # those that fit few families choose first
        if pair[0] not in seen[0] or pair[1] not in seen[1]:
            default.add(pair)
            seen[0].add(pair[0])
            seen[1].add(pair[1])
    return [
        pytest.param(*pair, id="-".join(pair), marks=() if pair in default else pytest.mark.full)
        for pair in sorted(pairs)
    ]


def crossed(first: Iterable[str], second: Iterable[str]) -> list[Any]:
    """`cells` of names that all go together."""
    return cells(first, second, lambda one, other: True)


def prompts(family: str, method: str, many: int = 4) -> list[dict[str, Tensor]]:
    """Batches that differ in their pictures, their number and their rows; videos where the method is about videos."""
    rows: Sequence[Any] = [[[0]], [[1, 2]], [[3], [0, 1]], [[2], []]]
    if method in OF_VIDEOS:
        rows = [[["v0"]], [["v1"]], [["v2"], ["v0"]], [["v1"], []]]
    return [batch(family, rows[i % len(rows)]) for i in range(many)]


def continued(inputs: Mapping[str, Tensor], ids: Tensor, more: Tensor) -> dict[str, Tensor]:
    """What to ask next, without the KV cache: `ids` [B, L] are those of the conversation so far, `more` [B, M] follow.

    Qwen's models keep the offset of their positions on themselves, where the next conversation overwrites it, wrapped
    or not; so those of what follows are given.
    """
    ids = torch.cat([ids, more], dim=1)
    new = ids.shape[1] - inputs["input_ids"].shape[1]
    found = {
        "input_ids": ids,
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1),
    }
    if "mm_token_type_ids" in inputs:
        found["mm_token_type_ids"] = torch.zeros_like(ids)
        found["position_ids"] = torch.arange(ids.shape[1]).expand(4, len(ids), -1)
    return found


def told(report: vtc.Report) -> Any:
    """What a report says that is no time."""
    spans = [
        (
            *(
                span.row,
                span.modality,
                span.grid,
                span.kept.tolist(),
                span.source.tolist(),
                span.boxes.nan_to_num(-1.0).tolist(),
            ),
            [(layer, kept.tolist(), source.tolist()) for layer, kept, source in span.steps],
            {layer: lost.tolist() for layer, lost in span.evicted.items()},
        )
        for span in report.spans
    ]
    stages = [{k: v for k, v in asdict(stage).items() if k != "ms"} for stage in report.stages]
    rows = [asdict(row) for row in report.rows]
    return spans, stages, rows, report.tokens_by_layer, report.flops_by_layer, report.kv_bytes_by_layer, report.notes


def one_sentence(error: BaseException) -> bool:
    """Whether an error's text is one sentence."""
    text = str(error)
    return "\n" not in text and text.endswith(".") and ". " not in text.replace("e.g. ", "")


def walk(value: Any) -> Iterable[Any]:
    """Everything inside containers, and these."""
    yield value
    if isinstance(value, Mapping):
        for x in value.values():
            yield from walk(x)
    elif isinstance(value, list | tuple):
        for x in value:
            yield from walk(x)
