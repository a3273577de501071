"""The oracle of vision towers: the full-length tower in whose attention some patches cannot be seen.

It shares no code with the engine. The tower runs on all patches; in every block the keys of those that are gone are
masked, frame by frame or window by window as the tower itself cuts its row. Patches that stay must come out equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_window_index


class _Masked:
    """Attention of a packed row, stretch after stretch: a stretch has to know where in the row it begins."""

    def __init__(self, received: list[Tensor]) -> None:
        self.received = received
        self.seen = torch.empty(0, dtype=torch.bool)  # [P], in the blocks' order; [B, T] of crops
        self.begin, self.first = 0, True

    def __call__(self, module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **more: Any) -> tuple[Tensor, None]:
        score = q @ k.transpose(2, 3) * more["scaling"]
        if self.seen.dim() == 2:
            attention = score.masked_fill(~self.seen[:, None, None], -torch.inf).softmax(dim=-1)
            self.received.append(attention.mean(dim=1))
            return (attention @ v).transpose(1, 2), None
        own, self.first = self.seen[self.begin : self.begin + q.shape[2]], self.begin == 0
        self.begin = (self.begin + q.shape[2]) % len(self.seen)
        if own.any():  # else nothing of the stretch is looked at by anybody
            score = score.masked_fill(~own, -torch.inf)
        attention = score.softmax(dim=-1)  # [1, H, L, L]
        given = attention.mean(dim=1)[0, own].sum(dim=0)  # by the patches that are there
        if self.first:
            self.received.append(torch.empty(0))
        self.received[-1] = torch.cat([self.received[-1], given / max(1, int(own.sum()))])
        return (attention @ v).transpose(1, 2), None


@contextmanager
def tower_oracle(model: Any, kept: list[Tensor], received: list[Tensor] | None = None) -> Iterator[Any]:
    """The plain `model` with such a tower; its runs see what is `kept`, one BoolTensor after the other: tokens [N] of
    Qwen's towers, rows [crops, T] of others.

    They begin anew behind the last one, so that several calls of the model can be compared. In `received`, per block of
    Qwen's, is noted how much attention each patch gets, the mean over those that are there in its stretch: [P]; of
    others the attention itself, the mean over heads: [crops, T, T].
    What it yields has `seen`, what can be seen in the present run: patches [P] in the blocks' order, rows [crops, T].
    """
    tower = model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower
    masked, runs = _Masked([] if received is None else received), 0
    AttentionInterface.register("masked", masked)
    before = tower.config._attn_implementation

    def begin(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal runs
        seen = kept[runs % len(kept)]
        runs += 1
        if seen.dim() == 2:
            masked.seen = seen
            return
        if hasattr(tower, "window_size"):
            grid = kwargs["grid_thw"]
            order, _ = get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
            seen = seen[order]
        masked.seen, masked.begin = seen.repeat_interleave(tower.spatial_merge_size**2), 0

    handle = tower.register_forward_pre_hook(begin, with_kwargs=True)
    tower.config._attn_implementation = "masked"
    try:
        yield masked
    finally:
        handle.remove()
        tower.config._attn_implementation = before
