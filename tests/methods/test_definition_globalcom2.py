"""globalcom2, as its paper and released code define it: loops over numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch

import vtc
from tests.methods.cropped import SPANS, Piece, Taken, highest, region_sum, shared, taken
from tests.methods.definitions import defines
from tests.methods.plain import cosine, mean
from vtc.layout import VisualSpan
from vtc.methods.globalcom2 import GlobalCom2
from vtc.signals import VisualTokens

Row = list[float]


def seen(span: VisualSpan, seed: int, cls: bool = True) -> VisualTokens:
    """A picture, and the logits of its CLS tokens in the last block; towers without one have none."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(1 if cls else 0, span.tokens, generator=g) * 3
    signals = {"cls_logits": logits.masked_fill(span.separators, 0.0)}
    features = torch.randn(span.tokens, 4, generator=g)
    return VisualTokens(features, span, torch.arange(span.tokens), signals.__getitem__)


def likeness(x: list[Row], own: list[int]) -> dict[int, float]:
    """-cos of each of the tokens `own` to their mean."""
    middle = mean([x[i] for i in own])
    return {i: -cosine(x[i], middle) for i in own}


def between(seen: list[float], side: int, x: float, y: float) -> float:
    """Bilinear: the value at (x, y) in [0, 1] of a map whose cells hold theirs in their middles."""
    col, row = (min(max(v * side - 0.5, 0.0), side - 1.0) for v in (x, y))
    c, r = min(int(col), side - 2), min(int(row), side - 2)
    dx, dy = col - c, row - r
    top = (1 - dx) * seen[r * side + c] + dx * seen[r * side + c + 1]
    low = (1 - dx) * seen[(r + 1) * side + c] + dx * seen[(r + 1) * side + c + 1]
    return (1 - dy) * top + dy * low


def middles(span: VisualSpan, piece: Piece) -> list[tuple[float, float]]:
    """Where in the picture the middle of each of a crop's tokens lies."""
    tile = next(t for t in span.tiles if t.start <= piece.tokens[0] < t.start + t.length)
    places = [divmod(i - tile.start, tile.w + tile.newline) for i in piece.tokens]
    return [((c + 0.5) / tile.w, (r + 0.5) / tile.h) for r, c in places]


def unit(values: Row) -> Row:
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


def judged(span: VisualSpan, tokens: VisualTokens, m: GlobalCom2) -> tuple[Taken, list[float], dict[int, float]]:
    """The parts, what each crop's share is made of, and the score of each token among those of its crop."""
    parts, x = taken(span), tokens.features.double().tolist()
    groups = [piece.tokens for piece in parts.crops] + ([parts.thumbnail] if parts.thumbnail else [])
    logits = tokens.read("cls_logits").double().tolist()
    score: dict[int, float] = {}
    for group in groups:
        by_features = m.scores == "cosine" or not logits or span.grid[0] > 1
        score |= likeness(x, group) if by_features else {i: logits[-1][i] for i in group}
    k = len(parts.crops)
    if span.grid[0] > 1:
        over = likeness(x, [i for piece in parts.crops for i in piece.tokens])
        sums = [sum(over[i] for i in piece.tokens) for piece in parts.crops]
    elif parts.thumbnail is None or any(piece.box is None for piece in parts.crops):
        return parts, [0.0] * k, score
    else:
        top, over, sums = [score[i] for i in parts.thumbnail], {}, []
        side = round(len(top) ** 0.5)
        for piece in parts.crops:
            assert piece.box is not None
            sums.append(float(region_sum(top, side, piece.box)))
            for i, (px, py) in zip(piece.tokens, middles(span, piece), strict=True):
                over[i] = between(top, side, px, py)
    for piece in parts.crops:
        own = unit([score[i] for i in piece.tokens])
        above = unit([over[i] for i in piece.tokens])
        for i, a, b in zip(piece.tokens, own, above, strict=True):
            score[i] = (1 - m.alpha) * a + m.alpha * b
    return parts, sums, score


def globalcom2(span: VisualSpan, tokens: VisualTokens, m: GlobalCom2) -> list[int]:
    """The tokens that stay."""
    parts, sums, score = judged(span, tokens, m)
    sizes, top = [len(piece.tokens) for piece in parts.crops], len(parts.thumbnail or [])
    patches = sum(sizes) + top
    part = [math.exp((s - max(sums)) / m.tau) for s in sums]
    more = [1 + p / sum(part) - 1 / len(part) for p in part]
    if m.exact_count:
        asked = min(span.tokens, m.keep if isinstance(m.keep, int) else max(1, round(m.keep * span.tokens)))
        ends = len(parts.ends) if m.newline and 2 * len(parts.ends) <= asked else 0
        budget = min(patches, asked - ends)
        ends = asked - budget
        first = budget * top // patches
        counts = shared(budget - first, [Fraction(size * x) for size, x in zip(sizes, more, strict=True)], sizes)
        first = budget - sum(counts)
    else:
        ends = len(parts.ends) if m.newline else 0
        ratio = Fraction(str(m.keep)) if isinstance(m.keep, float) else Fraction(min(m.keep, patches), patches)
        first = int(ratio * top)
        counts = [int(size * min(1.0, float(ratio) * x) + 1e-9) for size, x in zip(sizes, more, strict=True)]
    kept = parts.ends[:ends] + highest([score.get(i, 0.0) for i in range(span.tokens)], first, parts.thumbnail or [])
    for piece, count in zip(parts.crops, counts, strict=True):
        kept = kept + highest([score.get(i, 0.0) for i in range(span.tokens)], count, piece.tokens)
    return sorted(kept)


@defines("globalcom2", "tau", "alpha", "scores", "newline", "exact_count")
@pytest.mark.parametrize("exact_count", [True, False])
@pytest.mark.parametrize(("scores", "cls"), [("cls", True), ("cls", False), ("cosine", True)])
@pytest.mark.parametrize("name", SPANS)
def test_globalcom2(name: str, scores: str, cls: bool, exact_count: bool) -> None:
    for seed, (keep, tau, alpha, newline) in enumerate(
        [(0.25, 10.0, 0.5, True), (0.3, 2.0, 0.2, False), (14, 0.5, 1.0, True), (0.8, 1.0, 0.0, False)]
    ):
        tokens = seen(SPANS[name], seed, cls)
        options: dict[str, Any] = dict(keep=keep, tau=tau, alpha=alpha, newline=newline)
        method = GlobalCom2(scores=scores, exact_count=exact_count, **options)
        got = method.select(tokens).check()
        assert got.anchor.tolist() == globalcom2(SPANS[name], tokens, method), method
        if exact_count:
            assert got.tokens_out == method.count(tokens)


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("name", SPANS)
def test_fewer_tokens_than_crops(name: str, keep: int) -> None:
    """The crops that ask for most have one each, the ends of rows none, and the thumbnail what is left."""
    tokens = seen(SPANS[name], 1)
    chosen = GlobalCom2(keep=keep).select(tokens).check()
    assert chosen.tokens_out == keep
    assert chosen.anchor.tolist() == globalcom2(SPANS[name], tokens, GlobalCom2(keep=keep))
    assert GlobalCom2(keep=keep, exact_count=False).select(tokens).check().tokens_out >= 1


def test_the_effect_of_the_thumbnail_is_bounded() -> None:
    """However much one crop is preferred, it keeps less than twice its even share, and the others go on keeping."""
    span = SPANS["2 x 2 crops, padding above and below"]
    tokens, top = seen(span, 0), torch.zeros(1, span.tokens)
    top[0, [0, 1, 4, 5]] = 1e3
    tokens = VisualTokens(tokens.features, span, tokens.index, {"cls_logits": top}.__getitem__)
    kept = GlobalCom2(keep=0.25, exact_count=False).select(tokens).anchor
    owners = span.crop[kept]
    counts = torch.bincount(owners[owners >= 0], minlength=5).tolist()
    assert counts == [4, 5, 2, 2, 2]  # of 12 each: 12 * .25 * (1 + 1 - .25) = 5.25 and 12 * .25 * .75 = 2.25
    assert int((owners < 0).sum()) == 6  # the end of each row, on top


def test_a_picture_of_one_crop_keeps_what_scores_highest() -> None:
    x, logits = torch.randn(30, 4), torch.randn(30)
    chosen = vtc.select("globalcom2", x, keep=7, cls_logits=logits)
    assert chosen.anchor.tolist() == sorted(logits.topk(7).indices.tolist())
    with pytest.raises(ValueError, match=r"^this method needs the signal 'cls_logits': pass cls_logits=\.\.\."):
        vtc.select("globalcom2", x, keep=7)
    assert vtc.select("globalcom2(scores=cosine)", x, keep=7).tokens_out == 7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": -0.1}, r"^alpha=-0\.1 is not a number in \[0, 1\]: it is the weight of the thumbnail's scores\.$"),
        ({"tau": 0}, r"^tau=0 is not a number above 0: it is a temperature\.$"),
        ({"scores": "keys"}, r'^scores=\'keys\' is not one of "cls", "cosine"\.$'),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        vtc.resolve("globalcom2", **options)
