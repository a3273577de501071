"""Budget: how many rows each block of a vision tower has, which is known before the first of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from vtc.budget import split_budget, token_count
from vtc.methods.base.encoder import EncoderMethod
from vtc.models.tower import Groups


@dataclass(frozen=True, eq=False)
class Budget:
    """Rows left behind each block that counts.

    Attributes:
        sizes: [blocks + 1][groups], rows of each group before the first block, and behind each; one group, a picture,
            where rows are not packed.
    """

    sizes: tuple[tuple[int, ...], ...]
    prefix: int
    packed: bool

    @classmethod
    def of(
        cls,
        method: EncoderMethod,
        depth: int,
        tokens: int,
        prefix: int,
        groups: Sequence[int] | None = None,
        grids: Sequence[Sequence[int]] | None = None,
        there: Tensor | None = None,
    ) -> Budget:
        """What `method` leaves of a picture of `tokens`, or of the `groups` of a packed row, behind `depth` blocks.

        Args:
            grids: (t, h, w) of each picture or video in a packed row, in patches of which four make a row.
            there: what has not left before the tower, as `Tower.tokens_from_patches` takes it; None = everything.
                `tokens` and `groups` are of that, `keep` is a share of the whole.
        """
        if groups is None:
            whole = tokens if there is None else there.shape[1]
            last = min(token_count(method.keep, whole), tokens)
            return cls(((tokens,), *((left,) for left in method.counts_to(last, tokens, depth))), prefix, False)
        columns = [method.counts_to(share, size, depth) for size, share in _shares(method, groups, grids, there)]
        return cls((tuple(groups), *zip(*columns, strict=True)), prefix, True)

    def rows(self, block: int) -> tuple[int, int]:
        """Rows before a block's merging and behind it, of a picture and its prefix, or of the packed row."""
        last = len(self.sizes) - 1
        return tuple(self.prefix + sum(self.sizes[min(i, last)]) for i in (block, block + 1))  # type: ignore[return-value]

    def groups(self, block: int) -> Groups | None:
        """The groups of a packed row before a block; None where rows are not packed."""
        if not self.packed:
            return None
        return Groups(list(self.sizes[0]), list(self.sizes[min(block, len(self.sizes) - 1)]))

    def gone(self, block: int) -> Tensor:
        """LongTensor [groups] in main memory: how many rows each loses in a block."""
        return torch.tensor(self.sizes[block]) - torch.tensor(self.sizes[block + 1])


def _shares(
    method: EncoderMethod, groups: Sequence[int], grids: Sequence[Sequence[int]] | None, there: Tensor | None
) -> list[tuple[int, int]]:
    """(rows, rows that are to be left) of each group; those of a picture share what `keep` leaves of it."""
    wholes = [prod(grid) // 4 for grid in grids] if grids is not None else [sum(groups)]
    sizes = wholes if there is None else [int(own.sum()) for own in there.split(wholes)]
    found, rest = [], list(groups)
    for whole, size in zip(wholes, sizes, strict=True):
        own: list[int] = []
        while sum(own) < size:
            own.append(rest.pop(0))
        left = min(token_count(method.keep, whole), size)
        if left < len(own):
            raise ValueError(
                f"{method.title} cannot leave {left} of a picture's {whole} tokens: it has {len(own)} windows or "
                f"frames that attend within themselves, each of which keeps one at least; keep {len(own)} or more."
            )
        found += zip(own, _at_least_one(left, own), strict=True)
    return found


def _at_least_one(total: int, sizes: list[int]) -> list[int]:
    """`total` shared among groups in proportion to their sizes, but one each at least."""
    return [1 + share for share in split_budget(total - len(sizes), [size - 1 for size in sizes])]
