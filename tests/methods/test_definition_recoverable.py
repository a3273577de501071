"""recoverable, as its released code and our options define it: loops over numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests.engine.test_per_crop import image
from tests.methods.definitions import defines
from tests.methods.plain import cosine, mean, rows, shares
from tests.methods.test_outliers import factors
from vtc.engine.per_crop import select_scoped
from vtc.layout import VisualSpan, single_span
from vtc.selection import Selection
from vtc.signals import VisualTokens

Row = list[float]
GUIDANCE = 50 / math.sqrt(768)


@dataclass
class Seen:
    """What the method is shown, as numbers."""

    x: list[Row]
    attention: Row
    keys: list[Row]
    relevance: Row | None


def best(score: Row, k: int, among: list[int]) -> list[int]:
    """The k highest, best first; of equals the first."""
    return sorted(among, key=lambda i: (-score[i], i))[:k]


def weighted(seen: Seen, terms: dict[int, float], normalise: bool) -> Row:
    total = sum(terms.values()) if normalise else 1.0
    return [sum(weight * seen.x[i][c] for i, weight in terms.items()) / total for c in range(len(seen.x[0]))]


def defined(seen: Seen, sizes: tuple[int, int, int], neighbours: int, guidance: float, normalise: bool) -> list[Row]:
    """Outputs in order: both sets in raster order, centres by attention, and the sum of all others."""
    everyone = list(range(len(seen.x)))
    visual, recovered, merged = sizes
    kept = best(seen.attention, visual, everyone)
    if seen.relevance is not None:
        kept += best(seen.relevance, recovered, [i for i in everyone if i not in kept])
    rest = [i for i in everyone if i not in kept]
    outputs = [seen.x[i] for i in sorted(kept)]
    if not merged:
        return outputs
    centres = best(seen.attention, merged - 1, rest)
    for c in centres:
        like = {i: cosine(seen.keys[c], seen.keys[i]) for i in rest if i != c}
        if seen.relevance is not None:
            like = {i: near + guidance * seen.relevance[i] for i, near in like.items()}
        nearest = sorted(like, key=lambda i: (-like[i], i))[:neighbours]
        outputs.append(weighted(seen, {c: 1.0, **{i: seen.attention[i] for i in nearest}}, normalise))
    others = {i: seen.attention[i] for i in rest if i not in centres}
    return [*outputs, weighted(seen, others, normalise)]


def outliers(v: Row, k: int) -> int:
    return sum(factor > 1.5 for factor in factors(v, min(k, len(v) - 1)))


def released(seen: Seen) -> tuple[int, int, int]:
    """How many the released code keeps in each set, centres and the last token counted together."""
    n, recovered = len(seen.x), 0
    visual = math.floor(n * outliers(seen.attention, 20) / n)
    kept = best(seen.attention, visual, list(range(n)))
    if seen.relevance is not None:
        lowest = [min(seen.relevance) if i in kept else r for i, r in enumerate(seen.relevance)]
        recovered = math.floor((n - visual) * outliers(lowest, 20) / n)
        kept += best(seen.relevance, recovered, [i for i in range(n) if i not in kept])
    if not kept:
        visual, kept = 1, best(seen.attention, 1, list(range(n)))
    rest = [a for i, a in enumerate(seen.attention) if i not in kept]
    return visual, recovered, min(math.floor(len(kept) * outliers(rest, 10) / len(rest)), len(rest) - 1) + 1


def signals_of(n: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "joined_cls_attention": torch.randn(1, n, generator=g).softmax(dim=-1),
        "joined_keys": torch.randn(1, n, 6, generator=g),
        "text": torch.randn(3, 4, generator=g),
    }


def view(span: VisualSpan, seed: int) -> VisualTokens:
    n, signals = span.tokens, signals_of(span.tokens, seed)
    signals["joined_cls_attention"] = signals["joined_cls_attention"].masked_fill(span.separators, 0.0)
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(100 + seed))
    return VisualTokens(x, span, torch.arange(n), signals.__getitem__)


def numbers(tokens: VisualTokens, own: list[int] | None = None, relevance: Row | None = None) -> Seen:
    """Of the tokens `own`, the relevance being that of the model's own embeddings where none is given."""
    own = list(range(len(tokens.features))) if own is None else own
    x, words = rows(tokens.features), mean(rows(tokens.signal("text")))
    relevance = relevance or [cosine(row, words) for row in x]
    attention, keys = rows(tokens.signal("joined_cls_attention"))[0], rows(tokens.signal("joined_keys")[0])
    return Seen([x[i] for i in own], [attention[i] for i in own], [keys[i] for i in own], [relevance[i] for i in own])


def same(got: Selection, tokens: VisualTokens, expected: list[Row]) -> None:
    made = got.check().apply(tokens.features).double()
    torch.testing.assert_close(made, torch.tensor(expected).double(), atol=1e-5, rtol=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"recovered": 0.5, "merged": 0.3},
    {"recovered": 0.0},
    {"merged": 0.0},
    {"neighbours": 3, "guidance": 0.0},
    {"guided": False},
    {"normalise": True, "guidance": -1.0},
    {"scorer": lambda tokens: torch.arange(len(tokens.features)).sin(), "merged": 0.4},
]


@defines("recoverable", "recovered", "merged", "neighbours", "guidance", "guided", "normalise", "scorer")
@pytest.mark.parametrize("keep", [1, 2, 4, 13, 40, 59])
@pytest.mark.parametrize("options", OPTIONS)
def test_recoverable_with_exact_counts(options: dict[str, Any], keep: int) -> None:
    tokens = view(single_span(60, (1, 6, 10)), keep)
    method = vtc.Recoverable(keep=keep, **options)
    seen = numbers(tokens)
    if method.scorer is not None:
        seen.relevance = [math.sin(i) for i in range(60)]
    parts = [round(100 * share) for share in (1 - method.recovered - method.merged, method.recovered, method.merged)]
    visual, recovered, merged = shares(keep, parts)
    if not method.guided:
        seen.relevance, visual, recovered = None, visual + recovered, 0
    if not visual + recovered:
        visual, merged = 1, merged - 1
    got = method.select(tokens)
    assert got.tokens_out == keep
    same(got, tokens, defined(seen, (visual, recovered, merged), method.neighbours, method.guidance, method.normalise))


@defines("recoverable", "exact_count")
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_recoverable_as_released(seed: int, guided: bool) -> None:
    tokens = view(single_span(80, (1, 8, 10)), seed)
    seen = numbers(tokens)
    seen.relevance = seen.relevance if guided else None
    got = vtc.Recoverable(keep=1.0, exact_count=False, guided=guided).select(tokens)
    sizes = released(seen)
    assert got.tokens_out == sum(sizes)
    assert 2 <= got.tokens_out < 60
    same(got, tokens, defined(seen, sizes, 32, GUIDANCE, normalise=False))


@defines("recoverable", "exact_count")
def test_keep_limits_the_released_counts() -> None:
    tokens = view(single_span(80, (1, 8, 10)), 1)
    sizes = released(numbers(tokens))
    for keep in range(3, sum(sizes) + 3):
        got = vtc.Recoverable(keep=keep, exact_count=False).select(tokens)
        assert got.tokens_out == min(keep, sum(sizes))
        less = sizes if keep >= sum(sizes) else shares(keep, sizes)
        if less[0] + less[1]:
            same(got, tokens, defined(numbers(tokens), (less[0], less[1], less[2]), 32, GUIDANCE, normalise=False))


@defines("recoverable", "scope")
@pytest.mark.parametrize("keep", [12, 19, 30])
def test_recoverable_crop_by_crop(keep: int) -> None:
    tokens = view(image(3, 2, 1), keep)
    owner = tokens.span.crop.tolist()
    expected: list[Row] = []
    for crop, share in enumerate(shares(min(keep, 27), [9, 9, 9])):
        own = [i for i in range(len(owner)) if owner[i] == crop]
        visual, recovered, merged = shares(share, [60, 25, 15])
        if share == 9:
            expected += [rows(tokens.features)[i] for i in own]
        else:
            expected += defined(numbers(tokens, own), (visual, recovered, merged), 32, GUIDANCE, normalise=False)
    newlines = [i for i in range(len(owner)) if owner[i] < 0][: max(0, keep - 27)]
    got = select_scoped(vtc.Recoverable(keep=keep), [tokens])[0]
    if keep >= 27:
        expected = [row for i, row in enumerate(rows(tokens.features)) if owner[i] >= 0 or i in newlines]
    same(got, tokens, expected)


@defines("recoverable", "scope")
@pytest.mark.parametrize("keep", [9, 27, 30])
def test_recoverable_over_the_whole_image(keep: int) -> None:
    """Newline embeddings are no part of the picture: they stay only beyond all patches, and nothing absorbs them."""
    tokens = view(image(3, 2, 1), keep)
    own = [i for i, owner in enumerate(tokens.span.crop.tolist()) if owner >= 0]
    visual, recovered, merged = shares(keep, [60, 25, 15])
    got = select_scoped(vtc.Recoverable(keep=keep, scope="clip"), [tokens])[0]
    assert got.tokens_out == keep
    if keep < 27:
        assert (got.source[tokens.separators] == -1).all()
        same(got, tokens, defined(numbers(tokens, own), (visual, recovered, merged), 32, GUIDANCE, normalise=False))
    else:
        assert not got.merges
        assert int(tokens.separators[got.anchor].sum()) == keep - 27
