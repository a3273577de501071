"""A KV-cache layer that holds fewer rows than the sequence it stands for.

It reports the *logical* length (what `generate` counts with, so positions and slicing stay right) and offers the rows
it holds as the last ones of that length, as sliding-window layers do; masks are built for exactly these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

Change = Callable[[Tensor], Tensor]


@dataclass
class Aside:
    """Rows of a layer that rest beside it, and what the layer was like with them.

    Attributes:
        keys, values: [B, G, Q, d]. order: LongTensor [B, prompt], the old row of each of the Q rows aside and then of
            each row of the prompt still held.
        mask, prompt, group, tags: the layer's, before.
    """

    keys: Tensor
    values: Tensor
    order: Tensor
    mask: Tensor | None
    prompt: int
    group: object
    tags: dict[str, Tensor]

    def each_row(self, change: Change) -> None:
        self.keys, self.values, self.order = change(self.keys), change(self.values), change(self.order)
        self.mask = None if self.mask is None else change(self.mask)
        self.tags = {name: change(tag) for name, tag in self.tags.items()}


class CompressedLayer(DynamicLayer):
    """DynamicLayer whose prompt has lost `dropped` rows.

    Attributes:
        dropped: logical length minus number of rows held (the same for all batch rows; shorter ones are padded).
        mask: BoolTensor [B, held rows of the prompt] or None; False = padding. Rows added later are not in it.
        shift: LongTensor [B], what to subtract from the position of later tokens (`positions="compact"`).
        prompt: rows held when it was compressed.
        group: the same object in layers that hold the same rows.
        tags: name -> [B, rows], what `evict.py` notes of the first rows held. age: decode steps since the prefill.
        aside: rows that are not held for the moment (`active.py`), None = none.
    """

    dropped: int = 0
    mask: Tensor | None = None
    shift: Tensor | None = None
    prompt: int = 0
    group: object = None
    age: int = 0
    aside: Aside | None = None
    tags: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.tags = {}

    @classmethod
    def of(
        cls, layer: DynamicLayer, dropped: int, mask: Tensor | None, shift: Tensor | None, group: object
    ) -> CompressedLayer:
        """Take over the rows of `layer`; layers of one `group` hold the same rows."""
        new = cls()
        vars(new).update(vars(layer))  # whatever a layer of this version of transformers knows of itself
        new.dropped, new.mask, new.shift, new.group = dropped, mask, shift, group
        new.prompt = 0 if layer.keys is None else layer.keys.shape[-2]
        return new

    def evict(self, keep: Tensor) -> None:
        """Hold only the rows `keep` BoolTensor [B, held], right-aligned; their memory is freed."""
        assert self.keys is not None
        assert self.values is not None
        held = keep.shape[1]
        counts = keep.sum(dim=1)
        width = int(counts.max())
        taken = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, held - width :]  # [B, width]
        valid = keep.gather(1, taken)
        self.keys, self.values = _rows(self.keys, taken), _rows(self.values, taken)
        self.tags = {name: tag.gather(1, taken.to(tag.device)) for name, tag in self.tags.items()}
        self.dropped, self.prompt = self.dropped + held - width, width
        self.mask = None if int(counts.min()) == width else valid
        # without padding, layers that hold equally many rows at equal positions can share masks
        self.group = ("evicted", id(self.shift)) if self.mask is None else object()

    def set_aside(self, keep: Tensor, width: int, ragged: bool, group: object) -> None:
        """Hold only the rows `keep` BoolTensor [B, prompt] of the prompt, right-aligned; the others can be recalled.

        Args:
            width: most rows that any batch row keeps. ragged: whether another keeps fewer.
            group: as `self.group`, of the layer as it becomes.
        """
        assert self.keys is not None
        assert self.values is not None
        assert self.aside is None
        order = keep.to(torch.uint8).argsort(dim=1, stable=True)  # [B, prompt], what rests goes first
        cut = self.prompt - width
        aside, stays = order[:, :cut], order[:, cut:]
        rest = _rows(self.keys, aside), _rows(self.values, aside)
        new = Aside(*rest, order, self.mask, self.prompt, self.group, self.tags)
        self.keys = torch.cat([_rows(self.keys, stays), self.keys[:, :, self.prompt :]], dim=2)
        self.values = torch.cat([_rows(self.values, stays), self.values[:, :, self.prompt :]], dim=2)
        self.aside, self.tags, self.group = new, {}, group
        self.prompt, self.dropped = width, self.dropped + cut
        self.mask = keep.gather(1, stays) if ragged else None

    def recall(self) -> None:
        """Hold again what has been set aside, every row at its old place."""
        old, self.aside = self.aside, None
        if old is None:
            return
        assert self.keys is not None
        assert self.values is not None
        back = old.order.argsort(dim=1)

        def whole(aside: Tensor, held: Tensor) -> Tensor:
            prompt = _rows(torch.cat([aside, held[:, :, : self.prompt]], dim=2), back)
            return torch.cat([prompt, held[:, :, self.prompt :]], dim=2)

        self.keys, self.values = whole(old.keys, self.keys), whole(old.values, self.values)
        self.dropped -= old.prompt - self.prompt
        self.prompt, self.mask, self.group, self.tags = old.prompt, old.mask, old.group, old.tags

    @property
    def state(self) -> tuple[int, int, object]:
        """Equal for layers that hold the same rows: the same masks and positions are right for them."""
        held = 0 if self.keys is None else self.keys.shape[-2]
        return held, self.dropped, self.group

    def get_seq_length(self) -> int:
        held = super().get_seq_length()
        return held + self.dropped if held else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() - self.dropped + query_length, self.dropped

    def crop(self, tokens_to_remove: int) -> None:
        assert self.keys is not None
        if abs(tokens_to_remove) > self.keys.shape[-2] - self.prompt:
            raise ValueError(
                f"cannot remove {abs(tokens_to_remove)} tokens from a compressed cache: that reaches into the prompt "
                "(or, for cache methods with every=, behind the last eviction); start again without past_key_values."
            )
        super().crop(tokens_to_remove)
        self.tags = {name: tag[:, : self.keys.shape[-2]] for name, tag in self.tags.items()}

    def _each_row(self, change: Change) -> None:
        self.mask = None if self.mask is None else change(self.mask)
        self.shift = None if self.shift is None else change(self.shift)
        self.tags = {name: change(tag) for name, tag in self.tags.items()}
        if self.aside is not None:
            self.aside.each_row(change)

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
        self.dropped, self.mask, self.shift, self.prompt, self.tags, self.aside = 0, None, None, 0, {}, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, R] of keys or values [B, G, N, d]."""
    return x.gather(2, index.to(x.device)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


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
    if getattr(cache, "offloading", False):
        raise ValueError("an offloaded KV cache is not supported under compression; use the default DynamicCache.")
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, CompressedLayer):
            raise ValueError(
                f"a {type(layer).__name__} KV cache is not supported under compression; use the default DynamicCache."
            )


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
