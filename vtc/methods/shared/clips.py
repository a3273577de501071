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

IN_CACHE, AT_ONCE = 2**20, 2**26  # numbers in fp32 that are compared at a time: on a processor; on other devices


def frame_rows(tokens: VisualTokens) -> Tensor:
    """LongTensor [T, P]: the row of `tokens.features` at each frame and place; -1 where there is none any more.

    Places are those of the grid, h * w of them; separators have none.
    """
    row_of = tokens.row_of
    frames = max(tile.t for tile in tokens.span.tiles)
    blocks = [row_of[tile.indices().flatten(1).to(row_of.device)] for tile in tokens.span.tiles]
    return torch.cat([F.pad(block, (0, 0, 0, frames - len(block)), value=-1) for block in blocks], dim=1)


def cosines(tokens: VisualTokens, rows: Tensor, back: Sequence[int] | None = None) -> Tensor:
    """Cosine in fp32 of each token with one at its place in an earlier frame: [T, P]; -2 where one of them is missing.

    Features are read block by block, where possible as they lie, so that nothing of their size is made in fp32.

    Args:
        rows: `frame_rows(tokens)`.
        back: how many frames earlier, for each frame of a window, windows following each other from the first frame on;
            0 = with none. Example: (0, 1, 2, 1) compares frames 1, 2, 3 of four with 0, 0, 2. (1,) is the frame before.
            None takes the last token left at the place, however long ago.
    """
    whole = _whole_frames(tokens, rows)
    if whole is not None:
        return _along(whole, back or (1,))
    others = earlier(rows) if back is None else _at(rows, back)
    x = tokens.features.detach()
    step = _block(rows.shape[1] * x.shape[1], x.device)
    found = []
    for mine, theirs in zip(rows.clamp(min=0).split(step), others.clamp(min=0).split(step), strict=True):
        a, b = x[mine].float(), x[theirs].float()
        found.append(_dots(a, b) / (_lengths(a) * _lengths(b)))
    return torch.where((rows >= 0) & (others >= 0), torch.cat(found), -2.0)


def _along(frames: Tensor, back: Sequence[int]) -> Tensor:
    """`cosines` of whole frames [T, P, D]: slices of them, no copies."""
    size, lead = len(back), max(frames - place for place, frames in enumerate(back))
    step = -(-_block(frames[0].numel(), frames.device) // size) * size  # whole windows
    found = torch.full(frames.shape[:2], -2.0, device=frames.device)
    for i in range(0, len(frames), step):
        start = max(0, i - lead)
        block = frames[start : i + step].float()
        length = _lengths(block)
        for place, ago in enumerate(back):
            first = i - start + place
            if first < ago:  # the clip begins here
                first += size
            count = len(range(first, len(block), size))
            if ago and count:
                now, then = slice(first, None, size), slice(first - ago, first - ago + count * size, size)
                cosine = _dots(block[now], block[then]) / (length[now] * length[then])
                found[start : i + step][now] = cosine
    return found


def _block(numbers: int, device: torch.device) -> int:
    """How many frames of so many numbers are read at a time."""
    return max(1, (IN_CACHE if device.type == "cpu" else AT_ONCE) // max(1, numbers))


def _dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)


def _lengths(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-12)


def _whole_frames(tokens: VisualTokens, rows: Tensor) -> Tensor | None:
    """The features as frames [T, P, D], a view, if they lie frame after frame without gaps, as they mostly do."""
    tile, n = tokens.span.tiles[0], rows.numel()
    if len(tokens.features) < tile.start + n or len(tokens.span.tiles) > 1 or tile.newline:
        return None
    if not rows.equal(torch.arange(tile.start, tile.start + n, device=rows.device).view_as(rows)):
        return None
    return tokens.features.detach()[tile.start : tile.start + n].unflatten(0, rows.shape)


def _at(rows: Tensor, back: Sequence[int]) -> Tensor:
    """LongTensor [T, P]: what each of `rows` [T, P] is compared with, so many frames back; -1 = nothing."""
    steps = torch.tensor(back, device=rows.device).repeat(len(rows) // len(back) + 1)[: len(rows)]
    frame = torch.arange(len(rows), device=rows.device) - steps
    return torch.where(((steps > 0) & (frame >= 0))[:, None], rows[frame.clamp(min=0)], -1)


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
    cosine = cosines(tokens, rows).flatten()  # [T * P]
    merging = torch.zeros_like(cosine, dtype=torch.bool)
    merging.index_fill_(0, top_k(cosine, max(0, n - least)), True)
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
