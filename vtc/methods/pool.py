"""Average pooling on the grid: the training-free end of Matryoshka Multimodal Models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.budget import split_budget
from vtc.methods.base.method import Method, Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import upload_all


@dataclass(frozen=True, kw_only=True)
class Pool(Method):
    """Averages over near-square cells of the grid.

    Average pooling of the token grid into `keep` near-square cells.

    Source: arXiv 2405.17430 (Matryoshka Multimodal Models), section 3: nested token sets by 2-D average pooling
    (576, 144, 36, 9, 1), here without its training and for any count: the grid is cut into bands of rows and each band
    into cells, so that the count is exact. Pictures of several tiles share the budget by tile size; separators go,
    unless the budget is larger than all tiles.
    """

    name = "pool"
    keep: int | float = 144
    needs = ("grid",)
    merges = True
    positions_default = "compact"
    paper = Paper("Matryoshka Multimodal Models", "2405.17430")

    def select(self, tokens: VisualTokens) -> Selection:
        n = tokens.features.shape[0]
        blocks = [frame for tile in tokens.span.tiles for frame in tile.indices()]  # each [h, w]
        budget, patches = self.count(tokens), sum(block.numel() for block in blocks)
        shares = split_budget(min(budget, patches), [block.numel() for block in blocks])
        source = torch.full((n,), -1, dtype=torch.long)
        anchors: list[Tensor] = []
        for block, cells in zip(blocks, shares, strict=True):
            if cells == 0:
                continue
            cell = cell_map(block.shape[0], block.shape[1], cells)  # [h, w]
            source[block] = cell + len(anchors)
            anchors += [block[cell == c] for c in range(cells)]
        for spare in tokens.span.separators.nonzero()[: max(0, budget - patches)]:  # each [1]
            source[spare] = len(anchors)
            anchors.append(spare)
        # A cell stands at its middle member, which keeps the order of the cells for text-like positions.
        anchor = torch.stack([members[members.numel() // 2] for members in anchors])
        device = tokens.features.device
        return Selection.merge(*upload_all([anchor, source], device)).sorted()


def cell_map(h: int, w: int, cells: int) -> Tensor:
    """Partition an h x w grid into `cells` near-square cells: LongTensor [h, w] of cell numbers in reading order."""
    bands = min(h, max(round(math.sqrt(cells * h / w)), math.ceil(cells / w), 1), cells)
    band = torch.arange(h) * bands // h  # [h]
    per_band = torch.full((bands,), cells // bands)
    tallest = band.bincount().argsort(descending=True, stable=True)
    per_band[tallest[: cells % bands]] += 1
    start = per_band.cumsum(0) - per_band
    return start[band].unsqueeze(1) + torch.arange(w) * per_band[band].unsqueeze(1) // w
