"""visionzip and visiondrop, as their papers and released code define them: loops over numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.methods.definitions import defines
from vtc.engine.per_crop import select_scoped
from vtc.layout import Tile, VisualSpan, single_span
from vtc.methods.visiondrop import VisualVote
from vtc.selection import Selection
from vtc.signals import VisualTokens

Row = list[float]


def cosine(a: Row, b: Row) -> float:
    norms = sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


def strongest(score: list[float], k: int, among: list[int]) -> list[int]:
    return sorted(sorted(among, key=lambda j: (-score[j], j))[:k])


def zipped(
    x: list[Row], score: list[float], keys: list[Row], dominant: int, contextual: int, own: list[int]
) -> tuple[list[int], list[Row]]:
    """VisionZip's rule among the tokens `own`: which token each output stands at, and the outputs.

    Section 3.2 and the released code: targets at an even stride among what is not dominant, in raster order; each other
    one goes to the target of most similar key; target + mean of what it absorbed. Dominant first, then contextual.
    """
    top = strongest(score, dominant, own)
    rest = [j for j in own if j not in top]
    targets = [rest[i * (len(rest) // contextual)] for i in range(contextual)]
    outputs = [x[j] for j in top]
    for target in targets:
        taken = []
        for j in rest:
            likeness = [cosine(keys[j], keys[t]) for t in targets]
            if j not in targets and targets[likeness.index(max(likeness))] == target:
                taken.append(j)
        mean = [sum(x[j][c] for j in taken) / max(1, len(taken)) for c in range(len(x[0]))]
        outputs.append([a + b for a, b in zip(x[target], mean, strict=True)])
    return top + targets, outputs


def anyres(side: int) -> VisualSpan:
    """A thumbnail and a mosaic of 1 x 2 crops of which only the middle rows are left, as LLaVA-NeXT unpads it."""
    n, rows = side * side, side - 2
    row = [1] * side + [2] * side + [-1]  # the last is `image_newline`
    crop = torch.tensor([0] * n + row * rows)
    tiles = (Tile(0, 1, side, side, role="thumbnail"), Tile(n, 1, rows, 2 * side, newline=True, role="mosaic"))
    return VisualSpan(0, torch.arange(len(crop)), (1, rows, 2 * side), tiles, crop=crop)


def view(span: VisualSpan, seed: int) -> VisualTokens:
    g, n = torch.Generator().manual_seed(seed), span.tokens
    attention = torch.rand(2, n, generator=g) ** (1 + 2 * span.crop.clamp(min=0).float())  # sharper from crop to crop
    signals = {
        "cls_attention": attention.masked_fill(span.separators, 0.0),  # which the tower has not seen
        "keys": torch.randn(n, 3, generator=g),
        "cls_token": torch.randn(3, 4, generator=g),
    }
    return VisualTokens(torch.randn(n, 4, generator=g), span, torch.arange(n), signals.__getitem__)


def shares(budget: int, sizes: list[int]) -> list[int]:
    """In proportion, by largest remainders."""
    counts = [budget * size // sum(sizes) for size in sizes]
    for _ in range(budget - sum(counts)):
        left = [budget * size / sum(sizes) - count for size, count in zip(sizes, counts, strict=True)]
        counts[left.index(max(left))] += 1
    return counts


def crop_by_crop(tokens: VisualTokens, budget: int, contextual: float, cls: bool, whole: bool) -> list[Row]:
    """What the language model should read: crop after crop, the CLS token first."""
    x, keys = tokens.features.double().tolist(), tokens.signal("keys").double().tolist()
    rows = tokens.signal("cls_attention").double().tolist()
    score = [0.0 + sum(row[j] for row in rows) for j in range(len(x))]
    crops = tokens.span.crop.tolist()
    own = [[j for j in range(len(x)) if crops[j] == c] for c in range(3)]
    if whole:
        own = [[j for j in range(len(x)) if crops[j] >= 0]]
    read: list[Row] = []
    for c, share in enumerate(shares(budget, [len(crop) for crop in own])):
        few = min(round(contextual * share), share - 1)
        if cls:
            read.append(tokens.signal("cls_token")[c].double().tolist())
        top = share - few - cls
        read += zipped(x, score, keys, top, few, own[c])[1] if few else [x[j] for j in strongest(score, top, own[c])]
    return read


def read_of(selection: Selection, x: Tensor) -> Tensor:
    return selection.check().apply(x).double()


@defines("visionzip", "contextual", "scope", "cls")
@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("contextual", [0.0, 10 / 64, 0.5])
@pytest.mark.parametrize("keep", [7, 20, 33])
def test_visionzip_crop_by_crop(keep: int, contextual: float, cls: bool) -> None:
    tokens = view(anyres(5), keep)
    method = vtc.VisionZip(keep=keep, contextual=contextual, scope="crop", cls=cls)
    expected = crop_by_crop(tokens, keep, contextual, cls, whole=False)
    selection = select_scoped(method, [tokens])[0]
    got, right = read_of(selection, tokens.features), torch.tensor(expected).double()
    if not selection.merges:  # nothing is appended anywhere, so that all stand as they stood, row by row of the mosaic
        got, right = (rows[rows[:, 0].argsort()] for rows in (got, right))
    torch.testing.assert_close(got, right, atol=1e-5, rtol=1e-5)


@defines("visionzip", "scope")
@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_visionzip_over_the_whole_image(scope: str) -> None:
    tokens = view(anyres(4), 0)
    got = select_scoped(vtc.VisionZip(keep=16, contextual=0.25, scope=scope), [tokens])[0]
    expected = crop_by_crop(tokens, 16, 0.25, False, whole=True)
    torch.testing.assert_close(read_of(got, tokens.features), torch.tensor(expected).double(), atol=1e-5, rtol=1e-5)


@defines("visiondrop", "scope", "cls", "average")
@pytest.mark.parametrize("cls", [False, True])
def test_visiondrop_before_the_language_model(cls: bool) -> None:
    """VisionZip's rule with 6 of 48 contextual (released configuration); `average=False` scales 48 with the last 19."""
    tokens = view(anyres(5), 3)
    method = vtc.VisionDrop(keep=10, average=False, scope="crop", cls=cls).parts()[0]
    expected = crop_by_crop(tokens, round(10 * 48 / 19), 6 / 48, cls, whole=False)
    got = read_of(select_scoped(method, [tokens])[0], tokens.features)
    torch.testing.assert_close(got, torch.tensor(expected).double(), atol=1e-5, rtol=1e-5)


@defines("visiondrop", "average")
@pytest.mark.parametrize("keep", [32, 64, 100, 0.5])
def test_visiondrops_counts(keep: Any) -> None:
    """48, 35, 26 and 19 tokens in the four quarters, 32 on average; another budget scales them all alike."""
    total, depth = 576, 32
    wanted = keep if isinstance(keep, int) else round(keep * total)
    opening, inside = vtc.VisionDrop(keep=keep).parts()
    assert isinstance(inside, VisualVote)
    nothing: dict[str, Tensor] = {}
    whole = VisualTokens(torch.zeros(total, 1), single_span(total, None), torch.arange(total), nothing.__getitem__)
    counts = [opening.count(whole)]
    counts += inside.counts(total, depth)
    assert abs(sum(counts) / 4 - wanted) <= 0.5
    scale = wanted / 32
    if scale * 48 < total:
        assert all(abs(c - scale * s) <= 1 + scale * 0.01 * s for c, s in zip(counts, (48, 35, 26, 19), strict=True))
    assert inside.steps(depth) == (8, 16, 24)
    last = vtc.VisionDrop(keep=19, average=False).parts()
    assert last[1].counts(total, depth) == (35, 26, 19)  # type: ignore[attr-defined]


@defines("visiondrop")
@pytest.mark.parametrize(("step", "counts"), [(0, (30, 5)), (1, (22, 4)), (2, (16, 3))])
def test_visiondrop_inside(step: int, counts: tuple[int, int]) -> None:
    """After each quarter of 32 layers: dominant by visual attention, contextual by the layer's keys."""
    n, g = (48, 35, 26)[step], torch.Generator().manual_seed(step)
    attention, keys = torch.rand(n, generator=g), torch.randn(n, 2, 3, generator=g)
    x = torch.randn(n, 4, generator=g)
    signals = {"visual_attention": attention, "layer_keys": keys}
    span = single_span(576, None)
    inside = vtc.VisionDrop().parts()[1]
    got = inside.select(VisualTokens(x, span, torch.arange(n), signals.__getitem__, step=step, depth=32))
    heads = [[(a + b) / 2 for a, b in zip(*token, strict=True)] for token in keys.double().tolist()]
    where, expected = zipped(x.double().tolist(), attention.tolist(), heads, *counts, list(range(n)))
    assert got.anchor.tolist() == where
    torch.testing.assert_close(read_of(got, x), torch.tensor(expected).double(), atol=1e-5, rtol=1e-5)
