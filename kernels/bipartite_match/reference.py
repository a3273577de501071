"""Bipartite soft matching: half of the candidates each find the most similar one of the other half.

There is no Triton kernel: the matrix products are most of the work, and the device's own library multiplies faster.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.kernels.greedy_diversity.reference import absent, numbers, products

BLOCK, IN_CACHE = 2**24, 2**20  # similarities held at a time: on a GPU; on a CPU, so many as stay in its cache
SAME = 1 - 2**-18  # a cosine above it is 1 but for rounding
STRIP, TILE = 256, 2048  # rows and columns of similarities whose energy is summed at a time on a CPU


def energy(x: Tensor, scale: Tensor, margin: float, lengths: Tensor) -> Tensor:
    """PiToMe's energy of rows x [B, N, D] times scale [B, N]: mean of ELU(cosine - margin) over a picture, [B, N].

    Summed in fp64, as the mean of many fp32 cosines is finer than each of them. A cosine that is 1 but for rounding, of
    a token with itself or a copy, is 1, so that copies have the same energy. Cosines are symmetric: each pair is
    computed once, tile by tile, as a part of a row's sum and of a column's; nothing of N x N is held.
    """
    b, n = x.shape[:2]
    out = torch.zeros(b, n, dtype=torch.float64, device=x.device)
    host = x.device.type == "cpu"
    empty = absent(lengths, n, x.device)
    padded = empty is not None and (not host or bool(empty.any()))
    strip, tile = (max(32, STRIP // b), TILE) if host else (max(128, BLOCK // (b * n)), n)
    for start in range(0, n, strip):
        stop = min(n, start + strip)
        for left in range(start, n, tile):
            right = min(n, left + tile)
            value = products(x[:, start:stop], x[:, left:right])
            value.mul_(scale[:, start:stop, None] * scale[:, None, left:right])  # one factor for (i, j) and (j, i)
            if not host or float(value.amax()) > SAME:
                value.masked_fill_(value > SAME, 1.0)
            value = F.elu(value.sub_(margin), inplace=True)
            if padded:
                assert empty is not None
                value.masked_fill_(empty[:, start:stop, None] | empty[:, None, left:right], 0.0)
            out[:, start:stop] += value.sum(dim=2, dtype=torch.float64)
            out[:, max(left, stop) : right] += value[:, :, max(0, stop - left) :].sum(dim=1, dtype=torch.float64)
    return out / lengths[:, None]


def nearest(left: Tensor, right: Tensor, scale: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first count[b] rows `right` [B, R, D] times scale [B, R], the one most along each of `left` [B, A, D].

    Returns:
        product [B, A] (-inf if there is none), place in `right` LongTensor [B, A]; ties: the lowest.
    """
    b, a = left.shape[:2]
    best = torch.full((b, a), -torch.inf, device=left.device)
    where = torch.zeros(b, a, dtype=torch.long, device=left.device)
    empty = absent(count, right.shape[1], left.device)
    step = max(1, (IN_CACHE if left.device.type == "cpu" else BLOCK) // (b * right.shape[1]))
    for start in range(0, a, step):
        part = slice(start, start + step)
        product = products(left[:, part], right).mul_(scale[:, None])
        if empty is not None and (empty.device.type != "cpu" or bool(empty.any())):  # a GPU is not asked
            product.masked_fill_(empty[:, None], -torch.inf)
        best[:, part], where[:, part] = product.max(dim=-1)
    return best, where


def bipartite_pairs(features: Tensor, lengths: Tensor, protected: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """ToMe's pairs of features [B, N, D], of which `bipartite_match` takes the best.

    Args:
        protected: the first ones, which neither join nor are joined.

    Returns:
        every second token's number, its partner's, and the rank by similarity, each [B, ceil(N / 2)].
    """
    x, scale = numbers(features, exact=True)
    b, n = x.shape[:2]
    index, skipped = torch.arange(n, device=x.device).repeat(b, 1), 2 * (protected // 2) + 1
    left, right = index[:, 0::2], index[:, skipped::2]
    best, where = nearest(x[:, 0::2], x[:, skipped::2], scale[:, skipped::2], lengths // 2 - protected // 2)
    best = (best * scale[:, 0::2]).masked_fill((left >= lengths[:, None]) | (left < protected), -torch.inf)
    rank = torch.empty_like(left)
    places = torch.arange(left.shape[1], device=x.device).expand(b, -1)
    rank.scatter_(1, best.argsort(dim=1, descending=True, stable=True), places)
    return left, right.gather(1, where), rank


def bipartite_match(features: Tensor, r: Tensor, margin: float | None, lengths: Tensor, protected: int = 0) -> Tensor:
    """features [B, N, D], r LongTensor [B], lengths [B] -> LongTensor [B, N], the token that each one joins: itself
    unless it is one of the r that are merged. The first `protected` ones stay as they are (without a margin only)."""
    b, n = features.shape[:2]
    target = torch.arange(n, device=features.device).repeat(b, 1)
    most, r = int(r.max()), r.to(features.device, non_blocking=True)
    if not most:
        return target
    if margin is None:  # ToMe: every second token is a candidate
        left, partner, rank = bipartite_pairs(features, lengths, protected)
    else:  # PiToMe: of the 2r tokens that have most company, every second one
        x, scale = numbers(features, exact=True)
        crowded = (energy(x, scale, margin, lengths) * 2**28).round()  # equal if equal but for rounding
        if lengths.device.type != "cpu" or bool((lengths < n).any()):
            crowded = crowded.masked_fill(target >= lengths[:, None], -torch.inf)
        order = crowded.argsort(dim=1, descending=True, stable=True)
        left, right = order[:, 0 : 2 * most : 2], order[:, 1 : 2 * most : 2]
        row = torch.arange(b, device=x.device)[:, None]
        _, where = nearest(x[row, left], x[row, right], scale[row, right], r)
        rank = torch.arange(left.shape[1], device=x.device).expand(b, -1)
        partner = right.gather(1, where)
    return target.scatter(1, left, torch.where(rank < r[:, None], partner, left))
