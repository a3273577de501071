"""A KV-cache layer that holds fewer rows than the sequence it stands for.

It reports the *logical* length (what `generate` counts with, so positions and slicing stay right) and offers the rows
it holds as the last ones of that length, as sliding-window layers do; masks are built for exactly these rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class CompressedLayer(DynamicLayer):
    """DynamicLayer whose prompt has lost `dropped` rows.

    Attributes:
        dropped: logical length minus number of rows held (the same for all batch rows; shorter ones are padded).
        mask: BoolTensor [B, held rows of the prompt] or None; False = padding. Rows added later are not in it.
        shift: LongTensor [B], what to subtract from the position of later tokens (`positions="compact"`).
    """

    dropped: int = 0
    mask: Tensor | None = None
    shift: Tensor | None = None
    prompt: int = 0

    @classmethod
    def of(cls, layer: DynamicLayer, dropped: int, mask: Tensor | None, shift: Tensor | None) -> CompressedLayer:
        """Take over the rows of `layer`."""
        new = cls()
        new.keys, new.values = layer.keys, layer.values
        new.dtype, new.device, new.is_initialized = layer.dtype, layer.device, layer.is_initialized
        new.dropped, new.mask, new.shift = dropped, mask, shift
        new.prompt = 0 if layer.keys is None else layer.keys.shape[-2]
        return new

    def get_seq_length(self) -> int:
        held = super().get_seq_length()
        return held + self.dropped if held else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() - self.dropped + query_length, self.dropped

    def crop(self, tokens_to_remove: int) -> None:
        assert self.keys is not None
        if abs(tokens_to_remove) > self.keys.shape[-2] - self.prompt:
            raise ValueError(
                f"cannot remove {abs(tokens_to_remove)} tokens from a compressed cache: that reaches into the prompt; "
                "start again without past_key_values."
            )
        super().crop(tokens_to_remove)

    def _each_row(self, change: Any) -> None:
        self.mask = None if self.mask is None else change(self.mask)
        self.shift = None if self.shift is None else change(self.shift)

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
        self.dropped, self.mask, self.shift, self.prompt = 0, None, None, 0


def check_cache(cache: Any) -> None:
    """Refuse, in one sentence, caches whose rows cannot be left out."""
    if cache is None:
        return
    if not isinstance(cache, Cache):
        raise ValueError(f"past_key_values is a {type(cache).__name__}; expected a transformers DynamicCache.")
    if getattr(cache, "is_compileable", False):
        raise ValueError(
            "a static KV cache has a fixed length, which compression changes; "
            'use the default dynamic cache (leave out cache_implementation="static").'
        )
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, CompressedLayer):
            raise ValueError(
                f"a {type(layer).__name__} KV cache is not supported under compression; use the default DynamicCache."
            )


def compressed(cache: Any) -> CompressedLayer | None:
    """The first compressed layer of a cache, or None."""
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, CompressedLayer) and layer.is_initialized:
            return layer
    return None


def later_mask(
    layer: CompressedLayer, mask: Tensor | None, rows: int, length: int, device: torch.device
) -> Tensor | None:
    """The 2-D mask [rows, logical length] that matches a compressed layer; `length` = logical length of this forward.

    Args:
        mask: the caller's mask of logical length, or None for "no padding".
    """
    if mask is None and layer.mask is None:
        return None
    start = layer.prompt + layer.dropped  # logical length of the prompt
    later = (
        torch.ones(rows, length - start, dtype=torch.bool, device=device) if mask is None else mask[:, start:].bool()
    )
    held = layer.mask
    if held is None:
        held = torch.ones(rows, layer.prompt, dtype=torch.bool, device=device)
    unseen = torch.zeros(rows, layer.dropped, dtype=torch.bool, device=device)
    return torch.cat([unseen, held.to(device), later.to(device)], dim=1)
