"""Stores: a layer's prompt rows kept in another form than one tensor of equally many rows per head.

A layer that has a store holds in `keys` and `values` only what came after; the rows of the store are made whole when
attention asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

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
        index    0 1 2 / 3 3 3      [B, G, width]: where to read each; the first two of the second head are no rows

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
        number = valid.flatten().cumsum(0).view_as(valid)
        # what fills up is the head's own first row, which follows: another picture's may be NaN, masked or not
        self.index = torch.where(valid, number - 1, number.clamp(max=len(taken) - 1)).int()
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


class Half(NamedTuple):
    """Keys, or values, of a layer that shares a part of them with another one.

    Attributes:
        own: [R, d], rows that are the layer's alone. directions: [S, d], of length 1, in both layers. norms: [S], the
            lengths of these rows here.
    """

    own: Tensor
    directions: Tensor
    norms: Tensor


class PairedRows:
    """Rows of which two layers share the directions: they are multiplied by their lengths when attention asks.

    Args:
        halves: of keys and of values. index: int tensors [B, G, width] of both: which row of `own`, or, behind these,
            of `directions`, each one is.
    """

    def __init__(self, halves: tuple[Half, Half], index: tuple[Tensor, Tensor]) -> None:
        self.halves, self.index = halves, index
        self.width = index[0].shape[2]

    def whole(self) -> tuple[Tensor, Tensor]:
        keys, values = (
            torch.cat([half.own, half.directions * half.norms[:, None]])
            .index_select(0, index.flatten())
            .view(*index.shape, -1)
            for half, index in zip(self.halves, self.index, strict=True)
        )
        return keys, values

    def each_row(self, change: Change) -> None:
        self.index = change(self.index[0]), change(self.index[1])

    def crop(self, count: int) -> None:
        self.width -= count
        self.index = self.index[0][:, :, : self.width], self.index[1][:, :, : self.width]

    def tensors(self) -> list[Tensor]:
        return [x for half in self.halves for x in half] + [*self.index]


def paired(
    one: Tensor, other: Tensor, among: Tensor, directions: Tensor, own: Tensor
) -> tuple[tuple[Half, Tensor], tuple[Half, Tensor]]:
    """Keys (or values) of two layers as halves with their indices.

    Args:
        one, other: [B, G, K, d]. among: BoolTensor [B, G, K], rows that may be shared. directions: [B, G, K, d], where
            they are. own: BoolTensor [B, G, K], those of them that both layers keep as they are.
    """
    shares = among & ~own
    number = torch.where(shares, shares.flatten().cumsum(0).view_as(shares) - 1, 0)
    kept = (~shares).flatten().cumsum(0).view_as(shares) - 1
    index = torch.where(shares, number + int((~shares).sum()), kept).int()
    common = directions[shares]
    made = [(Half(x[~shares], common, x[shares].norm(dim=-1).to(x.dtype)), index) for x in (one, other)]
    return made[0], made[1]
