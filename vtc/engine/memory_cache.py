"""A layer of the KV cache that holds a memory beside the row, of which some columns have been left out.

Its rows are those of pictures, and no token of the conversation adds any: they come with a prompt, and all later steps
read them. What the model's own mask says of the whole memory is said of these columns (`Columns.seen`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from vtc.engine.kv_cache import CompressedLayer


@dataclass(frozen=True, eq=False)
class Columns:
    """Which columns of the plain model's memory are held.

    Example: two rows, of whose eight columns a method has kept four and two:

        at        0 2 5 6     - - 1 7         -1 fills up the shorter row, and nobody sees it
        total     8

    Attributes:
        at: LongTensor [B, S]. total: how many the plain model would hold. ragged: whether any of `at` is -1.
    """

    at: Tensor
    total: int
    ragged: bool

    @classmethod
    def all(cls, rows: int, total: int, device: torch.device) -> Columns:
        """Of a memory that is whole."""
        return cls(torch.arange(total, device=device).expand(rows, -1), total, False)

    def then(self, more: Columns) -> Columns:
        """These, and those of the pictures of a later turn behind them."""
        late = torch.where(more.at >= 0, more.at + self.total, -1)
        at = torch.cat([self.at.to(late.device), late], dim=1)
        return Columns(at, self.total + more.total, self.ragged or more.ragged)

    def each_row(self, change: Callable[[Tensor], Tensor]) -> Columns:
        return Columns(change(self.at), self.total, self.ragged)

    def seen(self, bias: Tensor | None, hidden: Tensor) -> Tensor | None:
        """What is added to the attention to each of them, [B, 1, T or 1, S]; None = nothing.

        Args:
            bias: the same of the plain model's memory, [B, 1, T, total]. hidden: for its type, where that is None.

        Raises:
            ValueError: with one sentence, if `bias` is about another number of columns.
        """
        if bias is None and not self.ragged:
            return None
        if bias is None:
            bias = hidden.new_zeros(len(self.at), 1, 1, 1).expand(-1, -1, -1, self.total)
        at, low = self.at.to(bias.device), torch.finfo(bias.dtype).min
        if bias.shape[-1] != self.total:
            raise ValueError(
                f"cross_attention_mask is about {bias.shape[-1]} columns of pictures, and there are {self.total}: it "
                "has to name all pictures of the conversation, those of earlier turns first."
            )
        short = bias.gather(3, at.clamp(min=0)[:, None, None].expand(-1, 1, bias.shape[2], -1))
        return short.masked_fill(at[:, None, None] < 0, low) if self.ragged else short


class MemoryLayer(DynamicLayer):
    """DynamicLayer of a memory, `columns` of which it holds."""

    columns: Columns | None = None

    @classmethod
    def of(cls, layer: DynamicLayer, columns: Columns) -> MemoryLayer:
        """Take over the rows of `layer`."""
        new = cls()
        vars(new).update(vars(layer))  # whatever a layer of this version of transformers knows of itself
        new.columns = columns
        return new

    def crop(self, tokens_to_remove: int) -> None:
        """Words that are taken back take no picture with them."""

    def _each_row(self, change: Callable[[Tensor], Tensor]) -> None:
        self.columns = None if self.columns is None else self.columns.each_row(change)

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self._each_row(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._each_row(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._each_row(lambda x: x[indices.to(x.device)])

    def reset(self) -> None:
        super().reset()
        self.columns = None


def columns_of(cache: Any, crossing: Sequence[int]) -> Columns | None:
    """What a cache holds of a memory; None where it has lost nothing of it.

    Args:
        crossing: the layers (0-based) that hold one, all alike.
    """
    layers = getattr(cache, "layers", None) or ()
    first = layers[crossing[0]] if crossing[0] < len(layers) else None
    return first.columns if isinstance(first, MemoryLayer) else None


def whole_of(cache: Any, crossing: Sequence[int], rows: int, device: torch.device) -> Columns | None:
    """All columns of the memory that a cache holds, which has lost nothing of it; None where there is none."""
    layers = getattr(cache, "layers", None) or ()
    held = layers[crossing[0]].get_seq_length() if crossing[0] < len(layers) else 0
    return Columns.all(rows, int(held), device) if held else None


def hold(cache: Any, crossing: Sequence[int], columns: Columns, text: int) -> None:
    """Tell a cache which columns its layers hold.

    Args:
        text: a layer of the conversation itself, which has lost nothing. What any other model would take for a whole
            cache says by it that it is none.
    """
    for i in crossing:
        cache.layers[i] = MemoryLayer.of(cache.layers[i], columns)
    if not isinstance(cache.layers[text], CompressedLayer):
        cache.layers[text] = CompressedLayer.of(cache.layers[text], 0, None, None, object())
