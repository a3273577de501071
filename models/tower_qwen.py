"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures of any size, packed into one row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.tower import Packing, Tower
from vtc.transfer import upload


class QwenTower(Tower):
    """Rotary positions, frames that do not see each other, 2 x 2 patches merged into a token at its end."""

    model_types = ("qwen2_vl_vision", "qwen3_vl_vision")
    takes = "packed"

    def packing(self, tower: Any) -> Packing:
        config = tower.config
        return Packing(config.spatial_merge_size, config.temporal_patch_size, config.patch_size)

    def blocks(self, tower: Any) -> Any:
        return tower.blocks

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attn for block in self.blocks(tower)]

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.qkv, attention.qkv

    def segments(self, inputs: dict[str, Any]) -> list[int] | None:
        return inputs["cu_seqlens"].diff().tolist()

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        t = q.shape[0]  # patches of all images, packed; q and k are the same fused projection [t, 3 * H * d]
        queries, keys, _ = q.view(t, 3, attention.num_heads, -1).unbind(1)  # [t, H, d]
        cos, sin = (x.float().unsqueeze(1) for x in inputs["position_embeddings"])  # [t, 1, d]
        assert grid_thw is not None
        lengths: Any = [h * w for t, h, w in grid_thw.tolist() for _ in range(t)]  # patches of each frame
        if len(lengths) != len(inputs["cu_seqlens"]) - 1:  # a block that attends within windows
            lengths = self.segments(inputs)
        packed = [_rotate(x.float(), cos, sin).transpose(0, 1).split(lengths, dim=1) for x in (queries, keys)]
        return [(a.unsqueeze(0), b.unsqueeze(0)) for a, b in zip(*packed, strict=True)]

    def tokens_from_patches(self, tower: Any, values: Tensor, grid_thw: Tensor | None, mean: bool) -> Tensor:
        assert grid_thw is not None
        merged = tower.spatial_merge_size**2
        groups = values.unflatten(1, (-1, merged))  # [1, N, 4, ...]
        if mean:
            tokens = groups.mean(dim=2)
        else:  # all images of a call are one packed row; an image's attention must not depend on its neighbours
            patches = grid_thw.prod(dim=1).cpu()  # [images]
            share = (patches / patches.sum()).repeat_interleave(patches // merged)  # [N]
            tokens = groups.sum(dim=2) / upload(share.to(groups.dtype), groups.device)
        order = self.order(tower, grid_thw)
        return tokens if order is None else tokens[:, upload(order.argsort(), tokens.device)]


class Qwen25Tower(QwenTower):
    """Most blocks attend within windows: patches are permuted window by window until the merger."""

    model_types = ("qwen2_5_vl_vision",)

    def feature_layer(self, tower: Any) -> int:
        return max(tower.fullatt_block_indexes)

    def order(self, tower: Any, grid_thw: Tensor) -> Tensor | None:
        window = tower.window_size // tower.spatial_merge_size // tower.patch_size
        return window_order(grid_thw, tower.spatial_merge_size, window)


def window_order(grid_thw: Tensor, merge: int, window: int) -> Tensor:
    """LongTensor [N]: token that stands at each place of the window-by-window order, over all images."""
    parts, start = [], 0
    for t, h, w in grid_thw.tolist():
        h, w = h // merge, w // merge
        index = torch.arange(t * h * w).view(t, h, w) + start
        for frame in index:
            parts += [cell.flatten() for band in frame.split(window, dim=0) for cell in band.split(window, dim=1)]
        start += t * h * w
    return torch.cat(parts)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [t, H, d] with cos, sin [t, 1, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
