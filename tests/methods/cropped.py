"""Pictures in crops, for definitions of methods that share a budget among them; their geometry in plain fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch

from vtc.layout import Tile, VisualSpan, single_span


class Piece(NamedTuple):
    """Tokens of one crop in reading order, its number, and the part of the picture that it shows: x0, y0, x1, y1."""

    tokens: list[int]
    number: int
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None


class Taken(NamedTuple):
    thumbnail: list[int] | None
    crops: list[Piece]
    ends: list[int]


def mosaic(side: int, owners: Sequence[Sequence[int]]) -> VisualSpan:
    """A thumbnail of side x side tokens and a mosaic with the crop (from 1) of each token, rows ending in newlines."""
    n, rows, cols = side * side, len(owners), len(owners[0])
    crop = [0] * n + [x for row in owners for x in (*row, -1)]
    tiles = (Tile(0, 1, side, side, role="thumbnail"), Tile(n, 1, rows, cols, newline=True, role="mosaic"))
    return VisualSpan(0, torch.arange(len(crop)), (1, rows, cols), tiles, crop=torch.tensor(crop))


def tiled(side: int, tiles: int) -> VisualSpan:
    """InternVL's: tiles nobody knows the places of, and the thumbnail behind them."""
    n = side * side
    blocks = tuple(Tile(i * n, 1, side, side, role="crop", box=None) for i in range(tiles))
    whole = (*blocks, Tile(tiles * n, 1, side, side, role="thumbnail"))
    return VisualSpan(0, torch.arange(n * (tiles + 1)), (1, side, side), whole, crop=torch.arange(n * (tiles + 1)) // n)


def thin() -> VisualSpan:
    """So thin a picture that nothing is left of its mosaic but the ends of its rows."""
    crop = torch.tensor([0] * 16 + [-1] * 4)
    return VisualSpan(0, torch.arange(20), (1, 4, 4), (Tile(0, 1, 4, 4, role="thumbnail"),), crop=crop)


def padded(side: int, crops_h: int, crops_w: int, rows: int, cols: int) -> VisualSpan:
    """The middle rows x cols of crops_h x crops_w crops of side x side tokens."""
    top, left = (crops_h * side - rows) // 2, (crops_w * side - cols) // 2
    owners = [[1 + (top + r) // side * crops_w + (left + c) // side for c in range(cols)] for r in range(rows)]
    return mosaic(side, owners)


def scaled(side: int, crops: int, rows: int, cols: int) -> VisualSpan:
    """crops x crops crops scaled down to rows x cols tokens, each of the crop under its centre."""
    owners = [
        [1 + (2 * r + 1) * crops // (2 * rows) * crops + (2 * c + 1) * crops // (2 * cols) for c in range(cols)]
        for r in range(rows)
    ]
    return mosaic(side, owners)


SPANS: dict[str, VisualSpan] = {
    "2 x 2 crops, padding above and below": padded(4, 2, 2, 6, 8),
    "1 x 2 crops, odd": padded(3, 1, 2, 3, 6),
    "3 x 1 crops, padding beside": padded(4, 3, 1, 12, 2),
    "1:9": padded(4, 1, 3, 1, 12),
    "scaled down": scaled(4, 3, 7, 5),
    "tiles": tiled(3, 4),
    "one crop": single_span(25, (1, 5, 5)),
    "thin": thin(),
    "film": single_span(48, (3, 4, 4), "video"),
}


def taken(span: VisualSpan) -> Taken:
    """The span in its parts, from the crop of each token and the tiles."""
    crop = span.crop.tolist()
    if span.grid[0] > 1:
        each = span.tokens // span.grid[0]
        return Taken(None, [Piece(list(range(t * each, t * each + each)), t, None) for t in range(span.grid[0])], [])
    ends = [i for i in range(span.tokens) if crop[i] < 0]
    if max(crop) == 0:
        return Taken(None, [Piece([i for i in range(span.tokens) if crop[i] == 0], 0, None)], ends)
    thumbnail: list[int] = []
    boxes: dict[int, list[tuple[Tile, int, int]]] = {}
    for tile in span.tiles:
        for i in range(tile.start, tile.start + tile.length):
            row, col = divmod(i - tile.start, tile.w + tile.newline)
            if tile.role == "thumbnail":
                thumbnail.append(i)
            elif col < tile.w:
                boxes.setdefault(crop[i], []).append((tile, row, col))
    pieces = []
    for number in sorted(boxes):
        own, tile = [i for i in range(span.tokens) if crop[i] == number], boxes[number][0][0]
        rows, cols = [r for _, r, _ in boxes[number]], [c for _, _, c in boxes[number]]
        box = (
            Fraction(min(cols), tile.w), Fraction(min(rows), tile.h),
            Fraction(max(cols) + 1, tile.w), Fraction(max(rows) + 1, tile.h),
        )  # fmt: skip
        pieces.append(Piece(own, number, None if tile.box is None else box))
    return Taken(thumbnail, pieces, ends)


def inside(cell: int, cells: int, low: Fraction, high: Fraction) -> Fraction:
    """Which share of the `cell`-th of so many equal parts of [0, 1] lies between `low` and `high`."""
    return max(Fraction(0), min(Fraction(cell + 1), high * cells) - max(Fraction(cell), low * cells))


def region_sum(values: Sequence[float], side: int, box: tuple[Fraction, Fraction, Fraction, Fraction]) -> Fraction:
    """Sum of the thumbnail's values, side x side of them, over the part of it that a crop shows."""
    x0, y0, x1, y1 = box
    return sum(
        (
            Fraction(values[r * side + c]) * inside(c, side, x0, x1) * inside(r, side, y0, y1)
            for r in range(side)
            for c in range(side)
        ),
        Fraction(0),
    )


def shared(budget: int, weights: Sequence[Fraction], sizes: Sequence[int]) -> list[int]:
    """In proportion, whole numbers by largest remainders; crops that would overflow are full, and the others share
    again what is left."""
    counts, rest, left = [0] * len(sizes), list(range(len(sizes))), min(budget, sum(sizes))
    while left > 0:
        total = sum(weights[i] for i in rest)
        exact = {i: left * weights[i] / total if total else Fraction(left, len(rest)) for i in rest}
        full = [i for i in rest if exact[i] >= sizes[i]]
        if full:
            for i in full:
                counts[i], left = sizes[i], left - sizes[i]
                rest.remove(i)
            continue
        for i in rest:
            counts[i] = int(exact[i])
        for _ in range(left - sum(counts[i] for i in rest)):
            most = max(rest, key=lambda i: (exact[i] - counts[i], -i))
            counts[most] += 1
        left = 0
    return counts


def highest(score: Sequence[float], k: int, among: Sequence[int]) -> list[int]:
    """The k of highest score; of equals the first."""
    return sorted(among, key=lambda j: (-score[j], j))[:k]
