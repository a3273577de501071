"""TowerRows: which rows of a vision tower's hidden states stand for which tokens of a batch of pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.methods.base.encoder import Joined


@dataclass(frozen=True, eq=False)
class Step:
    """What one block makes of its rows, of which `Joined` says what becomes of each.

    Attributes:
        index: LongTensor [B, M], the row that each new one takes its place from.
        source: LongTensor [B, T], the new row that each old one becomes a part of, -1 = none.
        shown: the same, but for a row that is dropped the new one that stands in for it.
        weight: [B, T] in fp32, its share in that; None where nothing merges.
    """

    index: Tensor
    source: Tensor
    shown: Tensor
    weight: Tensor | None

    def apply(self, x: Tensor) -> Tensor:
        """Rows [B, T, D] -> [B, M, D]."""
        if self.weight is None:
            return ops.gather_rows(self.index, [x])[0]
        b, m = self.index.shape
        start = torch.arange(b, device=x.device)[:, None] * m
        source = torch.where(self.source >= 0, self.source + start, -1)
        return ops.segment_sum(x.flatten(0, 1), source.flatten(), self.weight.flatten(), b * m).view(b, m, -1)


@dataclass(frozen=True, eq=False)
class TowerRows:
    """The rows between two blocks, of B pictures of N tokens each, T rows each.

    Example: a picture of CLS and five patches, of which 1 and 3 have merged into 4, and nothing else:

        token     0 1 2 3 4 5
        shown     0 2 1 2 2 3        row that stands for each token
        anchor    0 2 4 5            token that each row stands at
        size      1 1 3 1

    Attributes:
        shown: LongTensor [B, N]. anchor: LongTensor [B, T]. size: [B, T] in fp32, tokens in each row.
        gone: BoolTensor [B, N], tokens that are a part of no row, and are shown as another; None = none.
    """

    shown: Tensor
    anchor: Tensor
    size: Tensor
    gone: Tensor | None = None

    @classmethod
    def whole(cls, batch: int, tokens: int, device: torch.device) -> TowerRows:
        """Every token its own row."""
        own = torch.arange(tokens, device=device).expand(batch, -1)
        return cls(own, own, torch.ones(batch, tokens, device=device))

    def step(self, joined: Joined, left: int, keys: Tensor | None = None, prefix: int = 0) -> tuple[TowerRows, Step]:
        """The rows after a block, `left` of each picture, and how to make them.

        Args:
            keys: [B, T, d], where rows are dropped: the one that stays (behind the first `prefix`) and whose key is
                most like that of a dropped one is shown in its place.
        """
        target, index = joined
        own = torch.arange(target.shape[1], device=target.device)
        if index is None:
            index = (target != own).to(torch.uint8).argsort(dim=1, stable=True)[:, :left]
        place = torch.zeros_like(target).scatter_(1, index, own[:left].expand(len(target), -1))
        source = shown = place.gather(1, target.clamp(min=0))
        weight, gone = None, self.gone
        if keys is not None:
            stays = index[:, prefix:]
            left_keys = keys.gather(1, stays[..., None].expand(-1, -1, keys.shape[-1]))
            nearest = stays.gather(1, ops.nearest(keys, left_keys))
            source = torch.where(target >= 0, source, -1)
            shown = torch.where(target >= 0, shown, place.gather(1, nearest))
            lost = (target < 0).gather(1, self.shown)
            gone = lost if gone is None else gone | lost
            size = self.size.gather(1, index)
        else:
            size = torch.zeros_like(self.size[:, :left]).scatter_add_(1, source, self.size)
            weight = self.size / size.gather(1, source)
        rows = TowerRows(shown.gather(1, self.shown), self.anchor.gather(1, index), size, gone)
        return rows, Step(index, source, shown, weight)

    def expand(self, x: Tensor) -> Tensor:
        """Rows [B, T, D] -> tokens [B, N, D], each a copy of the row that stands for it."""
        return ops.gather_rows(self.shown, [x])[0]
