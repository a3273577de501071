"""hired, as its paper and released code define it: loops over numbers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.methods.cropped import SPANS, Taken, highest, inside, region_sum, shared, taken
from tests.methods.definitions import defines
from vtc.layout import VisualSpan
from vtc.methods.hired import HiRED
from vtc.signals import VisualTokens


def seen(span: VisualSpan, seed: int) -> tuple[VisualTokens, list[list[float]]]:
    """A picture, and the attention of its CLS tokens in the first block and in the one of the features."""
    g = torch.Generator().manual_seed(seed)
    attention = torch.rand(2, span.tokens, generator=g) ** 3
    signals: dict[str, Tensor] = {"cls_attention": attention.masked_fill(span.separators, 0.0)}
    features = torch.randn(span.tokens, 3, generator=g)
    return VisualTokens(features, span, torch.arange(span.tokens), signals.__getitem__), attention.tolist()


def weights(parts: Taken, first: list[float], m: HiRED) -> list[Fraction]:
    """What the crops share the rest of the budget by (equation 1)."""
    equal = [Fraction(1) for _ in parts.crops]
    if parts.thumbnail is None or any(piece.box is None for piece in parts.crops):
        return equal
    here = [first[i] for i in parts.thumbnail]
    n, side = len(here), round(len(here) ** 0.5)
    if m.share == "count":
        most = highest(here, int((1 - Fraction(str(m.alpha))) * n), range(n))
        here = [1.0 if i in most else 0.0 for i in range(n)]
    if m.regions == "rectangles":
        return [region_sum(here, side, piece.box) for piece in parts.crops if piece.box is not None]
    k = max(piece.number for piece in parts.crops)  # the released code's strips: the map cut into k parts of its rows
    return [
        sum((Fraction(here[i]) * inside(i, n, Fraction(p.number - 1, k), Fraction(p.number, k)) for i in range(n)),
            Fraction(0))
        for p in parts.crops
    ]  # fmt: skip


def hired(span: VisualSpan, first: list[float], last: list[float], m: HiRED) -> list[int]:
    """The tokens that stay."""
    parts, total = taken(span), span.tokens
    patches = sum(len(piece.tokens) for piece in parts.crops) + len(parts.thumbnail or [])
    keep = Fraction(str(m.keep))
    if m.exact_count:
        asked = min(total, int(m.keep) if isinstance(m.keep, int) else max(1, round(m.keep * total)))
        ends = len(parts.ends) if m.newline and 2 * len(parts.ends) <= asked else 0
        budget = min(patches, asked - ends)
        ends = asked - budget
    else:
        ends = len(parts.ends) if m.newline else 0
        budget = min(patches, int(m.keep) if isinstance(m.keep, int) else int(keep * patches))
    alpha = Fraction(str(m.alpha))
    top = 0 if parts.thumbnail is None else min(int(alpha * budget), len(parts.thumbnail))
    asked_by, sizes = weights(parts, first, m), [len(piece.tokens) for piece in parts.crops]
    if m.exact_count:
        counts = shared(budget - top, asked_by, sizes)
        top = budget - sum(counts)
    else:
        all_of = sum(asked_by)
        exact = [(budget - top) * (w / all_of if all_of else Fraction(1, len(sizes))) for w in asked_by]
        counts = [min(size, int(x)) for x, size in zip(exact, sizes, strict=True)]
    kept = parts.ends[:ends]
    if parts.thumbnail is not None:
        kept = kept + highest(last, top, parts.thumbnail)
    for piece, count in zip(parts.crops, counts, strict=True):
        kept = kept + highest(last, count, piece.tokens)
    return sorted(kept)


@defines("hired", "alpha", "share", "regions", "newline", "exact_count")
@pytest.mark.parametrize("exact_count", [True, False])
@pytest.mark.parametrize(("share", "regions"), [("mass", "rectangles"), ("count", "rectangles"), ("count", "strips")])
@pytest.mark.parametrize("name", SPANS)
def test_hired(name: str, share: str, regions: str, exact_count: bool) -> None:
    for seed, (keep, alpha, newline) in enumerate(
        [(0.3, 0.5, False), (0.3, 0.2, True), (13, 0.5, True), (0.7, 0.0, False), (6, 0.9, False), (0.9, 1.0, True)]
    ):
        tokens, (first, last) = seen(SPANS[name], seed)
        options: dict[str, Any] = dict(keep=keep, alpha=alpha, newline=newline)
        method = HiRED(share=share, regions=regions, exact_count=exact_count, **options)
        got = method.select(tokens).check()
        expected = hired(SPANS[name], first, last, method)
        assert got.anchor.tolist() == expected, method
        if exact_count:
            assert got.tokens_out == method.count(tokens)


@defines("hired", "exact_count")
@pytest.mark.parametrize("name", SPANS)
def test_hired_never_keeps_nothing(name: str) -> None:
    """Rounding down leaves none where there are fewer tokens than crops: then the largest part keeps its best one."""
    tokens, (_, last) = seen(SPANS[name], 0)
    (one,) = HiRED(keep=1, exact_count=False).select(tokens).check().anchor.tolist()
    parts = taken(SPANS[name])
    every = [*([parts.thumbnail] if parts.thumbnail else []), *(piece.tokens for piece in parts.crops)]
    assert [one] == highest(last, 1, max(every, key=len))
    assert HiRED(keep=1).select(tokens).check().tokens_out == 1


@pytest.mark.parametrize("name", ["2 x 2 crops, padding above and below", "scaled down", "1:9"])
def test_attention_in_one_corner_gives_its_crop_the_rest(name: str) -> None:
    span = SPANS[name]
    parts = taken(span)
    attention = torch.zeros(2, span.tokens)
    attention[0, 0] = 1.0  # the thumbnail's first token, under the first crop
    tokens = VisualTokens(torch.ones(span.tokens, 2), span, torch.arange(span.tokens), {"cls_attention": attention}.get)  # type: ignore[arg-type]
    for share in ("mass", "count"):
        kept = HiRED(keep=6, alpha=0.5 if share == "mass" else 15 / 16, share=share).select(tokens).anchor.tolist()
        crops = [i for i in kept if i >= 16]
        assert len(crops) == (3 if share == "mass" else 1)
        assert set(crops) <= set(parts.crops[0].tokens)


def test_padding_is_never_chosen_and_counts_for_nothing() -> None:
    """What the thumbnail shows is the picture without its padding: a mosaic cut in half has regions of half its
    rows, so that attention on the picture's upper half is all the upper crops'."""
    span = SPANS["2 x 2 crops, padding above and below"]
    attention = torch.full((2, span.tokens), 1e-6)
    attention[0, :8] = 1.0
    tokens = VisualTokens(torch.ones(span.tokens, 2), span, torch.arange(span.tokens), {"cls_attention": attention}.get)  # type: ignore[arg-type]
    kept = HiRED(keep=20).select(tokens).anchor
    assert torch.bincount(span.crop[kept], minlength=5).tolist() == [10, 5, 5, 0, 0]


def test_what_an_earlier_method_left_is_chosen_among() -> None:
    span = SPANS["2 x 2 crops, padding above and below"]
    tokens, (_, last) = seen(span, 3)
    left = torch.tensor([i for i in range(span.tokens) if i % 3])
    some = tokens.after(left, tokens.features[left])
    for keep in (7, 20, 0.3):
        chosen = HiRED(keep=keep).select(some).check()
        assert chosen.tokens_out == HiRED(keep=keep).count(some)
        places = left[chosen.anchor]
        for crop in range(5):
            own = [i for i in left.tolist() if span.crop[i] == crop]
            picked = [i for i in places.tolist() if span.crop[i] == crop]
            assert sorted(highest(last, len(picked), own)) == picked


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": 1.5}, r"^alpha=1\.5 is not a number in \[0, 1\]: it is the thumbnail's share of the budget\.$"),
        ({"share": "sum"}, r'^share=\'sum\' is not one of "mass", "count"\.$'),
        ({"regions": "rows"}, r'^regions=\'rows\' is not one of "rectangles", "strips"\.$'),
        ({"newline": 1}, r"^newline=1 of hired is neither True nor False\.$"),
        ({"exact_count": "no"}, r"^exact_count='no' of hired is neither True nor False\.$"),
        ({"scope": "crop"}, r"^scope='crop' is not one of clip\.$"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        vtc.resolve("hired", **options)
