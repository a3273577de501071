"""Definitions in plain Python: numbers and loops, written from the papers, for tests to hold the methods against."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from vtc.selection import Selection

Row = Sequence[float]


def cosine(a: Row, b: Row) -> float:
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def mean(rows: Sequence[Row]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def best(scores: Sequence[float], k: int) -> list[int]:
    """Places of the k highest, ascending; of equals the first."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


def dpc_knn(x: Sequence[Row], clusters: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Density peaks (Rodriguez and Laio 2014) with the density of its k-nearest-neighbour form (Du et al. 2016).

    The centres, best first, and for each point the centre that it joins.
    """
    n = len(x)
    apart = [[math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / len(a)) for b in x] for a in x]
    density = []
    for i in range(n):
        near = sorted(apart[i])[: min(neighbours, n)]  # itself among them
        density.append(math.exp(-sum(d * d for d in near) / len(near)))
    score = []
    for i in range(n):
        denser = [j for j in range(n) if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * (min(apart[i][j] for j in denser) if denser else max(map(max, apart))))
    centres = sorted(range(n), key=lambda i: (-score[i], i))[:clusters]
    return centres, [i if i in centres else min(centres, key=lambda c: apart[i][c]) for i in range(n)]


def shares(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` tokens in proportion to `sizes`, the largest remainders rounded up."""
    exact = [total * size / sum(sizes) for size in sizes]
    least = [math.floor(share + 1e-9) for share in exact]
    up = sorted(range(len(sizes)), key=lambda i: (least[i] - exact[i], i))[: total - sum(least)]
    return [share + (i in up) for i, share in enumerate(least)]


def members(selection: Selection) -> dict[int, list[int]]:
    """By the anchor of each output, the tokens that it is made of."""
    found: dict[int, list[int]] = {anchor: [] for anchor in selection.anchor.tolist()}
    for i, output in enumerate(selection.source.tolist()):
        if output >= 0:
            found[selection.anchor.tolist()[output]].append(i)
    return found


def rows(x: Tensor) -> list[list[float]]:
    return x.double().tolist()


def most_different(x: Sequence[Row], k: int) -> list[int]:
    """Max-min choice (DivPrune): first what is farthest from its nearest neighbour, then from the nearest chosen."""
    far = [[1 - cosine(a, b) for b in x] for a in x]
    everyone = range(len(x))
    if k >= len(x):
        return list(everyone)
    chosen = [max(everyone, key=lambda i: (min(far[i][j] for j in everyone if j != i), -i))]
    while len(chosen) < k:
        left = [i for i in everyone if i not in chosen]
        chosen.append(max(left, key=lambda i: (min(far[i][j] for j in chosen), -i)))
    return sorted(chosen)
