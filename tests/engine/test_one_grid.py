"""tiny-qwen's large pictures are one grid: what the methods that are made for crops do there (docs/media.md)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import vtc
from vtc.selection import Selection
from vtc.signals import VisualTokens

PICTURE = Path(__file__).resolve().parents[2] / "eval" / "data" / "tiny-next" / "pictures" / "n0002.webp"
KEEP = 100
SEEN: list[VisualTokens] = []


class Watch(vtc.Method):
    """Keeps everything, and notes what it is shown of the features' block, which is the last one here."""

    needs = ("cls_attention", "joined_cls_attention", "global_attention")

    def signal_number(self, name: str) -> float:
        return 3.0

    def select(self, tokens: VisualTokens) -> Selection:
        SEEN.append(tokens)
        return Selection.identity(len(tokens.features))


@cache
def tiny_qwen() -> tuple[Any, Any]:
    """The model, and a prompt about a picture of 384 px."""
    model, processor = vtc.load("tiny-qwen", device="cpu")
    return model, vtc.prepare(processor, "What is this?", [vtc.load_picture(PICTURE).resize((384, 384))])


@cache
def seen() -> VisualTokens:
    model, inputs = tiny_qwen()
    with torch.no_grad(), vtc.wrapped(model, Watch(keep=1.0)):
        model(**inputs)
    return SEEN[-1]


def kept(method: vtc.Method) -> tuple[list[int], str]:
    """What is left at the end, and the report in words."""
    model, inputs = tiny_qwen()
    with torch.no_grad(), vtc.wrapped(model, method):
        assert model(**inputs).logits.isfinite().all()
        report = vtc.report(model)
        (span,) = report.at(len(report.tokens_by_layer) - 1)
    assert span.tokens_in == 24 * 24
    assert span.tokens_out == len(span.kept) == KEEP
    assert not span.crops
    return span.kept.tolist(), " ".join(str(report).split())


def best(scores: list[float], count: int) -> list[int]:
    """The places of the `count` highest, the first of equal ones."""
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def test_hired_keeps_what_receives_most_attention():
    chosen, report = kept(vtc.HiRED(keep=KEEP))
    assert chosen == best(seen().read("cls_attention")[-1].tolist(), KEEP)
    assert "has no CLS token; received attention stands in for CLS attention" in report


def test_globalcom2_keeps_what_is_least_like_the_mean():
    rows = seen().features.double().tolist()
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    scores = [
        -sum(a * b for a, b in zip(row, mean, strict=True)) / sum(a * a for a in row) ** 0.5 for row in rows
    ]  # the mean's own length changes no order
    chosen, _ = kept(vtc.GlobalCom2(keep=KEEP))
    assert chosen == best(scores, KEEP)


@pytest.mark.parametrize("cell", [6, 12])
def test_vflowopt_recycles_in_cells_of_the_whole_grid(cell):
    """All cuts are the first one here: `r1` is what is kept, and so is `r2` of it."""
    chosen, _ = kept(vtc.VFlowOpt(keep=KEEP, average=False, threshold=3.0, r1=KEEP, r2=1.0, cell=float(cell)))
    scores = seen().read("global_attention").tolist()
    cells = (24 // cell) ** 2
    first = best(scores, KEEP - cells)
    rest = [i for i in range(24 * 24) if i not in set(first)]
    expected = []
    for number in range(cells):
        row, column = divmod(number, 24 // cell)
        own = [i for i in rest if (i // 24 // cell, i % 24 // cell) == (row, column)]
        expected.append(max(own, key=lambda i: scores[i]))
    assert chosen == sorted(first + expected)


def test_recoverable_keeps_salient_tokens_and_those_of_the_text():
    chosen, report = kept(vtc.Recoverable(keep=KEEP))
    attention = seen().read("joined_cls_attention")[0].tolist()
    salient = best(attention, 60)
    assert set(salient) <= set(chosen)
    without, _ = kept(vtc.Recoverable(keep=KEEP, guided=False))
    assert set(best(attention, 85)) <= set(without)
    assert "received attention stands in for joined CLS attention" in report
