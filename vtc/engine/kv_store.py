"""Stores: a layer's prompt rows kept in another form than one tensor of equally many rows per head.

A layer that has a store holds in `keys` and `values` only what came after; the rows of the store are made whole when
attention asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


class Store(Protocol):
    """Keys and values of `width` rows per batch row and head, in whatever form."""

    width: int

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, width, d]."""
        ...

    def each_row(self, change: Change) -> None:
        """`change` the batch, as beam search does."""
        ...

    def crop(self, count: int) -> None:
        """Forget the last `count` rows."""
        ...

    def tensors(self) -> list[Tensor]:
        """What it occupies memory with."""
        ...


class UnevenRows:
    """As many rows for each head as it keeps, one behind the other; whoever reads them gets them filled up on the left.

    Example: one batch row, two KV heads that keep three rows and one:

        keys     a b c | d          [4, d], the rows of both heads
        index    0 1 2 / 0 0 3      [B, G, width]: where to read each; the first two of the second head are no rows

    Beams share what they read: only `index` follows them.

    Args:
        keys, values: [B, G, held, d]. rows: LongTensor [B, G, width], which rows of these each head keeps.
        valid: BoolTensor [B, G, width], False for what fills up.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, valid: Tensor) -> None:
        b, groups, held = keys.shape[:3]
        device = keys.device
        rows, valid = rows.to(device), valid.to(device)
        first = torch.arange(b * groups, device=device).view(b, groups, 1) * held
        taken = (first + rows)[valid]
        self.keys = keys.reshape(b * groups * held, -1).index_select(0, taken)
        self.values = values.reshape(b * groups * held, -1).index_select(0, taken)
        number = valid.flatten().cumsum(0).sub_(1).clamp_(min=0).view_as(valid)
        self.index = torch.where(valid, number, 0).int()
        self.width = rows.shape[2]

    def whole(self) -> tuple[Tensor, Tensor]:
        where = self.index.flatten()
        shape = (*self.index.shape, -1)
        return self.keys.index_select(0, where).view(shape), self.values.index_select(0, where).view(shape)

    def each_row(self, change: Change) -> None:
        self.index = change(self.index)

    def crop(self, count: int) -> None:
        self.width -= count
        self.index = self.index[:, :, : self.width]

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values, self.index]
