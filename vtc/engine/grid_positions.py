"""Compact M-RoPE positions: the gaps that dropped tokens leave in (t, h, w) positions are closed, on the device."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.transfer import upload

if TYPE_CHECKING:
    from vtc.engine.plan import Places


def renumber(positions: Tensor, places: Places, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Close the gaps of every picture and pull up what follows it in its row.

    Along each of (h, w) the kept tokens' coordinates become their ranks; what follows an image starts one past its
    largest coordinate. Time stays as it is: it counts seconds, not tokens. With one position per token in reading order
    this is plain renumbering. A video whose frames have text between them (Qwen3-VL) is renumbered run by run.

    Example, one image of 2 x 3 tokens at (h, w) from 4 on, of which the first column is dropped:

        h          4 4 4 5 5 5      start 4, end 7 (w reaches 6), next text at 7
        w          4 5 6 4 5 6
        kept       . x x . x x
        new h      . 4 4 . 5 5      two ranks along h, two along w: extent 2
        new w      . 4 5 . 4 5      closed 7 - 4 - 2 = 1: the text moves from 7 to 6

    Args:
        positions: [3, B, L]. places: where the visual tokens are. taken: LongTensor [M], which of them stay.

    Returns:
        positions [3, B, L], right where a token stays; LongTensor [B], how far what follows the pictures moved down.
    """
    _, rows, length = positions.shape
    row, at = places.at
    own, v = positions[:, row, at], len(row)  # [3, V]
    run = _runs(places)  # [V], less than V of them
    zero = torch.zeros(v, dtype=torch.long, device=positions.device)
    blank = zero.to(positions.dtype)  # Qwen3-Omni's are numbers with a fraction, along t
    both = run.expand(2, -1).reshape(-1)
    start = blank.scatter_reduce(0, both, own[1:].reshape(-1), "amin", include_self=False)
    end = blank.scatter_reduce(0, both, own[1:].reshape(-1), "amax", include_self=False) + 1
    line = torch.ones_like(zero).scatter_reduce(0, run, (own[0] == own[1]).long(), "amin") > 0  # t counts along with h

    of = run[taken]
    rank = _ranks(own[:, taken], of, v)  # [3, M]
    extent = torch.zeros(3, v, dtype=torch.long, device=positions.device)
    extent = extent.scatter_reduce(1, of.expand(3, -1), rank + 1, "amax")  # 0 where nothing of a run stays
    extent = torch.maximum(extent[1:].amax(dim=0), torch.where(line, extent[0], 0))
    there = zero.index_fill(0, run, 1)
    closed = (end - start - extent) * there

    last = zero.scatter_reduce(0, run, row * (length + 1) + at, "amax", include_self=False) + 1
    down = torch.zeros(rows * (length + 1), dtype=closed.dtype, device=positions.device)
    down = down.scatter_add_(0, last, closed).view(rows, length + 1)
    moved = down.cumsum(dim=1)
    new = positions - moved[:, :length]
    base = start[of] - moved[row[taken], at[taken]]  # of a run, as what came before has moved it
    stays = torch.stack([torch.where(line[of], base + rank[0], new[0, row[taken], at[taken]]), *(base + rank[1:])])
    new[:, row[taken], at[taken]] = stays
    return new, moved[:, -1]


def close_up(positions: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The same of HunyuanOCR's four rows: place in the row, column, line, number of the picture.

    The first counts tokens of every kind and closes its gaps, and all four do where they are equal, as those of text
    are; column, line and number are counted from the picture's corner and of the conversation, and stay.

    Args:
        positions: [4, B, L]. gone: BoolTensor [B, L], tokens that have left.

    Returns:
        positions [4, B, L]; LongTensor [B], how many are gone of each row.
    """
    moved = gone.cumsum(dim=1)
    own = (positions != positions[:1]).any(dim=0)  # [B, L], tokens with a place in a picture
    new = positions - moved
    new[1:] = torch.where(own, positions[1:], new[1:])
    return new, moved[:, -1]


def _runs(places: Places) -> Tensor:
    """LongTensor [V]: number of the unbroken run of tokens of one picture that each visual token is in."""
    row, at = places.at
    begins = torch.ones_like(at, dtype=torch.bool)
    begins[1:] = (at.diff() != 1) | (row.diff() != 0)
    starts = [first for first, n in zip(accumulate((0, *places.sizes)), places.sizes, strict=False) if n]
    begins.index_fill_(0, upload(torch.tensor(starts), at.device), True)  # pictures without text between them
    return begins.cumsum(dim=0) - 1


def _ranks(own: Tensor, run: Tensor, runs: int) -> Tensor:
    """Coordinates own [3, M] -> how many different smaller ones there are in the same run, along each axis."""
    if not own.shape[1]:
        return own.long()
    low = own.amin(dim=1, keepdim=True)
    width = own.amax(dim=1, keepdim=True) - low + 1
    key, order = (run * width + own - low).sort(dim=1)
    fresh = torch.zeros_like(key, dtype=torch.long)
    fresh[:, 1:] = key.diff(dim=1) != 0
    dense = torch.empty_like(fresh).scatter_(1, order, fresh.cumsum(dim=1))  # rank among all of the batch
    first = torch.zeros(3, runs, dtype=torch.long, device=own.device)
    first = first.scatter_reduce(1, run.expand(3, -1), dense, "amin", include_self=False)
    return dense - first.gather(1, run.expand(3, -1))
