"""Windows of the grid, and what is highest in each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vtc.kernels.pictures import ranks
from vtc.signals import VisualTokens
from vtc.transfer import upload


def windows(tokens: VisualTokens, side: int) -> tuple[Tensor, list[int]]:
    """Of each token the window of side x side tokens that it lies in, LongTensor [N], and how many lie in each.

    Windows are those of each tile, frame by frame, row by row; those at the edges may be smaller. Separators lie in
    none: the number behind the last.
    """
    number, count = torch.full((tokens.total,), -1, dtype=torch.long), 0
    for tile in tokens.span.tiles:
        for frame in tile.indices():
            for band in frame.split(side):
                for cell in band.split(side, dim=1):
                    number[cell.flatten()], count = count, count + 1
    number = torch.where(number < 0, count, number)
    here = upload(number, tokens.index.device)[tokens.index]
    whole = number if len(here) == tokens.total else here.cpu()  # nothing is read from a device where all are there
    return here, torch.bincount(whole, minlength=count + 1)[:count].tolist()


def top_of_each(score: Tensor, window: Tensor, sizes: Sequence[int], counts: Sequence[int]) -> Tensor:
    """BoolTensor [N]: the highest of `score` [N] in each window, `counts` of its `sizes` tokens; ties: the lowest.

    Args:
        window: as `windows` says; of those in none there is no highest.
    """
    n = len(score)
    order = (window * n + ranks(score)).argsort()  # window by window, each by falling score
    start = upload(torch.tensor([0, *accumulate(sizes)]), window.device)
    most = upload(torch.tensor([*counts, 0]), window.device)
    place = torch.arange(n, device=window.device) - start[window[order]]
    return torch.zeros(n, dtype=torch.bool, device=window.device).scatter(0, order, place < most[window[order]])
