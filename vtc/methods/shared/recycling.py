"""Recycling: of the tokens that go, those of one cell of the picture become one token in its most important place."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.layout import VisualSpan
from vtc.selection import Selection


def cells_of(span: VisualSpan, side: float) -> Tensor:
    """LongTensor [N] in main memory: the cell of `side` x `side` tokens that each token lies in, tiles apart, numbered
    without gaps; -1 for separators.

    Example: rows 0 to 4 in cells of side 2.5: 0, 1 and 2 are of the first, as row / 2.5 < 1, 3 and 4 of the second.
    """
    cell, before = torch.full((span.tokens,), -1, dtype=torch.long), 0
    for tile in span.tiles:
        t, h, w = tile.t, tile.h, tile.w
        rows, columns = ((torch.arange(n, dtype=torch.float64) / side).long() for n in (h, w))
        across, down = int(columns[-1]) + 1, int(rows[-1]) + 1
        frame = torch.arange(t)[:, None, None] * down * across
        cell[tile.indices().flatten()] = (before + frame + rows[:, None] * across + columns).flatten()
        before += t * down * across
    return cell


def recycled(importance: Tensor, cell: Tensor, cells: int, count: int, more: int | None = None) -> Selection:
    """Keep the most important tokens; what else a cell holds becomes one token where its most important one stands.

    The token that stands for a cell is the mean of those that go there, weighted by their importance (all alike, where
    none has any). As they take Z places, Z more tokens go than are to.

    Example: 6 tokens in two cells of three, importance 6 5 4 | 3 2 1, 4 are to be left. With Z = 2 the tokens 4, 3, 2
    and 1 go, which are in both cells: 2 stay, 2 come back, and Z is right. With Z = 1 (3, 2 and 1 go) one would come
    back, and 3 + 1 = 4, so Z is 1, the smallest that is right: 6 5 4, and the mean of 3, 2 and 1 where 3 stood.

    Args:
        importance: [N]; of those in no cell, inf stays and -inf goes.
        cell: LongTensor [N], -1 for tokens of no cell, which are never merged. cells: how many there are.
        count: how many are to be left: at least as many as cells and tokens that stay in any case.
        more: Z; None = the smallest with which exactly `count` are left. With a number of cells C that is at most C:
            raised by one, Z makes at most one more cell non-empty, and at C none is left to be.
    """
    n, device = len(importance), importance.device
    order = importance.argsort(descending=True, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(n, device=device))  # 0 = the most important
    inside, home = cell >= 0, cell.clamp(min=0)
    last = torch.full((cells,), -1, device=device).scatter_reduce_(0, home, torch.where(inside, place, -1), "amax")
    if more is None:
        worst = torch.cat([last.sort(descending=True).values, last.new_full((1,), -1)])
        fits = worst < count - torch.arange(len(worst), device=device)  # cells that Z tokens more leave untouched
        stay = count - fits.to(torch.uint8).argmax()
    else:
        stay = torch.tensor(max(count - more, int((importance == torch.inf).sum())), device=device)
    goes = (place >= stay) & inside
    best = torch.full((cells,), n, device=device).scatter_reduce_(0, home, torch.where(goes, place, n), "amin")
    back = goes & (place == best[home])
    left = (place < stay) | back
    anchor = left.logical_not().to(torch.uint8).argsort(stable=True)[:count] if more is None else left.nonzero()[:, 0]
    slot = left.cumsum(0) - 1
    stands = order[best.clamp(max=n - 1)]  # of each cell, the token that comes back
    source = torch.where(left, slot, torch.where(goes, slot[stands[home]], -1))
    counted = torch.where(goes, importance.float().clamp(min=0), 0.0)
    total = torch.zeros(len(best), device=device).index_add_(0, home, counted)
    many = torch.zeros(len(best), device=device).index_add_(0, home, goes.float())
    share = torch.where(total[home] > 0, counted / total[home], 1 / many[home].clamp(min=1))
    return Selection(anchor, source, torch.where(goes, share, left.float()))
