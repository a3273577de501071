"""Budgets for crops: methods in which a picture's thumbnail says how much each of its crops may keep.

A crop is one picture that the vision tower sees. An any-resolution picture has a thumbnail, which shows all of it, and
crops; a video's frames are its crops, and it has no thumbnail; any other picture is a single crop.

Example: LLaVA-NeXT, a thumbnail of 2 x 2 tokens and two crops side by side of which one row of two is left:

    token     0 1 2 3 4 5 6 7 8
    what      t t t t a a b b n     n = `image_newline`
    region    a is the left half of the picture, b the right one: tokens 0 and 2, and 1 and 3, of the thumbnail
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.layout import Box
from vtc.methods.base.method import Method, top_k
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import upload


@dataclass(frozen=True, eq=False)
class Crop:
    """One crop of a span.

    Attributes:
        places: LongTensor [h, w], indices of its tokens in the span; in main memory.
        rows: LongTensor [n], the rows of the features that are its tokens, in order: fewer than h * w where an earlier
            method has dropped some. index: LongTensor [n], which tokens of the span they are.
        number: among the crops of its picture. box: the part of the picture it shows; None if unknown.
    """

    places: Tensor
    rows: Tensor
    index: Tensor
    number: int = 0
    box: Box | None = None

    @property
    def size(self) -> int:
        """n, its tokens that are there."""
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Parts:
    """A span taken apart.

    Attributes:
        tokens: the span. thumbnail: None where there is none. crops: the others, by number; at least one.
        separators: LongTensor [S], rows of the features that are no patches (`image_newline`).
    """

    tokens: VisualTokens
    thumbnail: Crop | None
    crops: tuple[Crop, ...]
    separators: Tensor

    @property
    def every(self) -> tuple[Crop, ...]:
        """The thumbnail, if there is one, and the crops."""
        return self.crops if self.thumbnail is None else (self.thumbnail, *self.crops)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each of `every`."""
        return [crop.size for crop in self.every]

    @property
    def film(self) -> bool:
        """Whether the crops are the frames of a video."""
        return self.tokens.span.grid[0] > 1

    @property
    def placed(self) -> bool:
        """Whether it is known which part of the thumbnail each crop shows."""
        return self.thumbnail is not None and all(crop.box is not None for crop in self.crops)

    def over_the_thumbnail(self, values: Tensor) -> Tensor:
        """Values [total] of the span's tokens: those of the thumbnail, [h * w]."""
        assert self.thumbnail is not None
        return values[upload(self.thumbnail.places.flatten(), values.device)]


def take_apart(tokens: VisualTokens) -> Parts:
    """The thumbnail, the crops and the separators of a span."""
    span, device = tokens.span, tokens.features.device
    thumbnail, known = False, [(0, place, None) for tile in span.tiles for place in tile.indices()]
    if span.grid[0] > 1:
        known = [(number, place, None) for number, (_, place, _) in enumerate(known)]
    elif int(span.crop.max()) > 0:
        found = sorted(span.rectangles(), key=lambda one: (one.tile.role != "thumbnail", one.number))
        thumbnail, known = found[0].tile.role == "thumbnail", [(x.number, x.places, x.box) for x in found]
    ends = span.separators.nonzero()[:, 0]
    places = [place.flatten() for _, place, _ in known] + [ends]
    rows = tokens.row_of[upload(torch.cat(places), device)].split([len(place) for place in places])
    if len(tokens.features) < tokens.total:
        rows = [own[own >= 0] for own in rows]
    crops = tuple(
        Crop(place, own, tokens.index[own], number, box)
        for (number, place, box), own in zip(known, rows[:-1], strict=True)
    )
    return Parts(tokens, crops[0] if thumbnail else None, crops[1:] if thumbnail else crops, rows[-1])


def regions(parts: Parts) -> Tensor:
    """[k, h * w] in fp64 and main memory: which share of each token of the thumbnail lies in what each crop shows.

    Example: of a thumbnail three tokens wide, two crops side by side show 1, 1/2, 0 and 0, 1/2, 1 of each row.
    """
    assert parts.thumbnail is not None
    h, w = parts.thumbnail.places.shape
    shown = []
    for crop in parts.crops:
        assert crop.box is not None
        x0, y0, x1, y1 = crop.box
        shown.append(torch.outer(covered(h, y0, y1), covered(w, x0, x1)).flatten())
    return torch.stack(shown)


def covered(cells: int, low: float, high: float) -> Tensor:
    """[cells] in fp64: which share of each of so many equal parts of [0, 1] lies in [low, high]."""
    start = torch.arange(cells, dtype=torch.float64)
    return ((start + 1).clamp(max=high * cells) - start.clamp(min=low * cells)).clamp(min=0)


def share_out(budget: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """`budget` shared in proportion to `weights`, none getting more than its size: largest remainders, ties to the
    first; what does not fit into one goes to the others by the same rule. Without any weight the shares are equal.

    Example: 10 by weights 6, 3, 1 of sizes 4, 9, 9: 6 do not fit into the first; of the other 6 the weights 3 and 1 get
    4.5 and 1.5, that is 5 and 1.
    """
    counts, rest = [0] * len(sizes), list(range(len(sizes)))
    left = min(budget, sum(sizes))
    while left:
        exact = dict(zip(rest, parted(left, [weights[i] for i in rest]), strict=True))
        full = [i for i in rest if exact[i] >= sizes[i]]
        if not full:
            for i in rest:
                counts[i] = whole(exact[i])
            by_remainder = sorted(rest, key=lambda i: round(counts[i] - exact[i], 9))
            for i in by_remainder[: left - sum(counts[i] for i in rest)]:
                counts[i] += 1
            break
        for i in full:
            counts[i] = sizes[i]
            left -= sizes[i]
        rest = [i for i in rest if i not in full]
    return counts


def parted(budget: float, weights: Sequence[float]) -> list[float]:
    """`budget` in proportion to `weights`; equal parts if they are all 0."""
    total = sum(weights)
    return [budget * weight / total if total > 0 else budget / len(weights) for weight in weights]


def whole(number: float) -> int:
    """Rounded down, but for the last digits: three thirds of 3 are 3."""
    return math.floor(number + 1e-9)


@dataclass(frozen=True, kw_only=True)
class CropMethod(Method):
    """Base of methods that give the thumbnail a part of the budget, and each crop as much of the rest as it says.

    A new one defines `weigh` and `counts`. `keep` counts all tokens of a picture, over all of its crops.

    Args:
        newline: whether the tokens that end the rows of an any-resolution picture stay. They count as tokens; where
            they would be more than half of the budget, they go. Without, they stay only where the budget goes beyond
            the patches.
        exact_count: whether exactly `keep` tokens stay: shares are rounded by largest remainders, and what does not fit
            into one crop goes to others. False: each share is rounded down and cut to the size of its crop, as in the
            released code, so that fewer may stay; tokens that end rows then come on top.
    """

    newline: bool = False
    exact_count: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    scopes = ("clip",)
    positions_default = "compact"

    def keeps_all(self) -> bool:
        """Not where shares are rounded down and cut, and tokens that end rows are left out."""
        return self.exact_count

    def weigh(self, parts: Parts) -> tuple[Tensor | None, Tensor]:
        """What the shares of the crops are made of, [k], None if nothing is known that tells them apart; and what each
        row of the features is worth, [N]: within a crop the highest are kept."""
        raise TypeError(f"{type(self).__name__} does not define weigh(parts).")

    def counts(self, parts: Parts, budget: float, asked: Sequence[float] | None) -> list[int]:
        """How many tokens each of `parts.every` keeps, `budget` patches in all; that is whole if `exact_count` is."""
        raise TypeError(f"{type(self).__name__} does not define counts(parts, budget, asked).")

    def select(self, tokens: VisualTokens) -> Selection:
        return self.select_many([tokens])[0]

    def select_many(self, many: Sequence[VisualTokens]) -> list[Selection]:
        spans = [take_apart(tokens) for tokens in many]
        weighed = [self.weigh(parts) for parts in spans]
        known = [asked for asked, _ in weighed if asked is not None]
        numbers = iter(torch.cat(known).tolist() if known else [])  # the device is waited for once
        chosen = []
        for parts, (asked, worth) in zip(spans, weighed, strict=True):
            shares = None if asked is None else [next(numbers) for _ in range(len(asked))]
            chosen.append(self._chosen(parts, shares, worth))
        return chosen

    def _chosen(self, parts: Parts, asked: Sequence[float] | None, worth: Tensor) -> Selection:
        budget, ends = self._budget(parts)
        counts = self.counts(parts, budget, asked)
        if not sum(counts):
            counts[parts.sizes.index(max(parts.sizes))] = 1
        kept = [parts.separators[:ends]]
        for crop, count in zip(parts.every, counts, strict=True):
            if count:
                kept.append(crop.rows[top_k(worth[crop.rows], count)])
        return Selection.prune(torch.cat(kept).sort().values, len(parts.tokens.features), ascending=True)

    def _budget(self, parts: Parts) -> tuple[float, int]:
        """How many patches are to stay, and how many of the tokens that end rows."""
        patches, ends = sum(parts.sizes), len(parts.separators)
        if not self.exact_count:
            whole = parts.tokens.budget if parts.tokens.budget is not None else self.keep
            share = whole * patches if isinstance(whole, float) else whole
            return min(share, patches), ends if self.newline else 0
        budget = self.count(parts.tokens)
        stay = ends if self.newline and 2 * ends <= budget else 0
        patches = min(budget - stay, patches)
        return patches, budget - patches
