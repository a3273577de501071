"""What temporal methods share: a clip as frames by places, comparisons between frames, and how a budget is shared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.methods.base.method import top_k
from vtc.selection import Selection
from vtc.signals import VisualTokens


def rows_by_index(tokens: VisualTokens) -> Tensor:
    """LongTensor [total]: the row of `tokens.features` of each of the span's tokens; -1 where it has gone."""
    row_of = torch.full((tokens.total,), -1, dtype=torch.long, device=tokens.index.device)
    row_of[tokens.index] = torch.arange(len(tokens.index), device=tokens.index.device)
    return row_of


def frame_rows(tokens: VisualTokens) -> Tensor:
    """LongTensor [T, P]: the row of `tokens.features` at each frame and place; -1 where there is none any more.

    Places are those of the grid, h * w of them; separators have none.
    """
    row_of = rows_by_index(tokens)
    frames = max(tile.t for tile in tokens.span.tiles)
    blocks = [row_of[tile.indices().flatten(1).to(row_of.device)] for tile in tokens.span.tiles]
    return torch.cat([F.pad(block, (0, 0, 0, frames - len(block)), value=-1) for block in blocks], dim=1)


def cosine_to(tokens: VisualTokens, rows: Tensor, others: Tensor) -> Tensor:
    """Cosine in fp32 of the tokens `rows` and `others` (LongTensors of one shape); -2 where one of them is missing."""
    unit = F.normalize(tokens.features.float(), dim=-1)
    cosine = (unit[rows.clamp(min=0)] * unit[others.clamp(min=0)]).sum(dim=-1)
    return torch.where((rows >= 0) & (others >= 0), cosine, -2.0)


def earlier(rows: Tensor) -> Tensor:
    """LongTensor [T, P]: the row last seen at the same place before each of `rows` [T, P]; -1 = none."""
    number = torch.arange(len(rows), device=rows.device)[:, None]
    last = torch.where(rows >= 0, number, -1).cummax(dim=0).values
    last = F.pad(last, (0, 0, 1, 0), value=-1)[:-1]
    return torch.where(last >= 0, rows.gather(0, last.clamp(min=0)), -1)


def with_separators(tokens: VisualTokens, kept: Tensor, budget: int) -> Tensor:
    """Ascending rows `kept` [M], and separators as far as the budget is not used up."""
    spare = tokens.separators.nonzero()[:, 0][: max(0, budget - len(kept))]
    return torch.cat([kept, spare]).sort().values


def absorbed(target: Tensor) -> Selection:
    """Average the tokens that share a target: `target` [N], what each one goes to (itself: it stays), -1 = nothing."""
    here = torch.arange(len(target), device=target.device)
    anchor = (target == here).nonzero()[:, 0]
    rank = torch.full_like(target, -1)
    rank[anchor] = torch.arange(len(anchor), device=target.device)
    return Selection.merge(anchor, torch.where(target >= 0, rank[target.clamp(min=0)], -1))


def merge_frames(tokens: VisualTokens, similar: float, least: int) -> Selection:
    """Merge each token into the one left at its place before it, if their cosine is at least `similar`.

    No more than leave `least` tokens; the most similar first.
    """
    n, rows = len(tokens.features), frame_rows(tokens)
    target = torch.arange(n, device=rows.device)
    cosine = cosine_to(tokens, rows, earlier(rows)).flatten()  # [T * P]
    merging = torch.zeros_like(cosine, dtype=torch.bool)
    merging[top_k(cosine, max(0, n - least))] = True
    merging = (merging & (cosine >= similar)).view_as(rows)
    there = rows >= 0
    target[rows[there]] = _roots(rows, there & ~merging)[there]
    return absorbed(target)


def _roots(rows: Tensor, stays: Tensor) -> Tensor:
    """LongTensor [T, P]: the row at the last frame so far at which each place `stays`."""
    number = torch.arange(len(rows), device=rows.device)[:, None]
    return rows.gather(0, torch.where(stays, number, -1).cummax(dim=0).values.clamp(min=0))


def share_out(total: int, weights: Sequence[float], sizes: Sequence[int], least: int = 0) -> list[int]:
    """Share `total` in proportion to `weights`: largest remainders, never more than a frame holds.

    Args:
        weights: one per frame, not negative; all zero counts as all equal.
        sizes: tokens of each frame; their sum is the most that can be shared.
        least: what each frame gets at least, if the total allows it for all of them.
    """
    total = min(total, sum(sizes))
    floor = [min(least, size) for size in sizes]
    shares = floor if sum(floor) <= total else [0] * len(sizes)
    open_ = [i for i, size in enumerate(sizes) if size > shares[i]]
    while open_ and sum(shares) < total:
        rest, whole = total - sum(shares), sum(weights[i] for i in open_)
        exact = {i: rest * (weights[i] / whole if whole > 0 else 1 / len(open_)) for i in open_}
        full = [i for i in open_ if shares[i] + exact[i] >= sizes[i]]
        for i in full:  # what does not fit goes to the others
            shares[i] = sizes[i]
        if full:
            open_ = [i for i in open_ if i not in full]
            continue
        by_remainder = sorted(open_, key=lambda i: math.floor(exact[i]) - exact[i])
        for i in open_:
            shares[i] += math.floor(exact[i])
        for i in by_remainder[: total - sum(shares)]:
            shares[i] += 1
    return shares
