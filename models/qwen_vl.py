"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any picture size, packed towers without CLS, 2 x 2 patches merged per token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import Tile
from vtc.models.family import Adapter, ImageLayout, Known


class QwenVLAdapter(Adapter):
    """Qwen3-VL's DeepStack rows (`visual_pos_masks`, `deepstack_visual_embeds`) are handled by the engine."""

    model_types = ("qwen2_vl", "qwen3_vl")
    mrope = True

    def tower(self, model: nn.Module) -> Any:
        return self.base(model).visual

    def attentions(self, model: nn.Module) -> list[Any]:
        return [block.attn for block in self.tower(model).blocks]

    def has_cls(self, model: nn.Module) -> bool:
        return False

    def feature_layer(self, model: nn.Module) -> int:
        return len(self.tower(model).blocks) - 1

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.qkv, attention.qkv

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        t = q.shape[0]  # patches of all images, packed; q and k are the same fused projection [t, 3 * H * d]
        queries, keys, _ = q.view(t, 3, attention.num_heads, -1).unbind(1)  # [t, H, d]
        cos, sin = (x.float().unsqueeze(1) for x in inputs["position_embeddings"])  # [t, 1, d]
        lengths = inputs["cu_seqlens"].diff().tolist()
        packed = [_rotate(x.float(), cos, sin).transpose(0, 1).split(lengths, dim=1) for x in (queries, keys)]
        return [(a.unsqueeze(0), b.unsqueeze(0)) for a, b in zip(*packed, strict=True)]

    def tokens_from_patches(self, model: nn.Module, values: Tensor, grid_thw: Tensor | None, mean: bool) -> Tensor:
        assert grid_thw is not None
        merged = self.tower(model).spatial_merge_size ** 2
        groups = values[0].unflatten(0, (-1, merged))  # [tokens, 4, ...]
        if mean:
            return groups.mean(dim=1)
        # All images of a call are one packed sequence; an image's attention must not depend on its neighbours.
        patches = grid_thw.prod(dim=1)  # [images]
        share = (patches / patches.sum()).to(groups)
        return groups.sum(dim=1) / share.repeat_interleave(patches // merged)

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        if known.thw is None:
            raise ValueError(f"{known.modality}_grid_thw is missing: pass it as the processor returned it.")
        merge = self.tower(model).spatial_merge_size
        t, h, w = known.thw
        h, w = h // merge, w // merge
        if t * h * w != features.shape[0]:
            raise ValueError(
                f"{known.modality} of grid {(t, h, w)} has {t * h * w} tokens, but {features.shape[0]} were found."
            )
        index = torch.arange(t * h * w)
        tile = Tile(0, t, h, w, role="image" if known.modality == "image" else "frames")
        return ImageLayout((t, h, w), (tile,), index, torch.zeros_like(index), index.numel())


class Qwen25VLAdapter(QwenVLAdapter):
    """Qwen2.5-VL's tower works on windows: its patches are permuted window by window until the merger."""

    model_types = ("qwen2_5_vl",)

    def feature_layer(self, model: nn.Module) -> int:
        return max(self.tower(model).fullatt_block_indexes)  # the last one in which all patches see each other

    def tokens_from_patches(self, model: nn.Module, values: Tensor, grid_thw: Tensor | None, mean: bool) -> Tensor:
        assert grid_thw is not None
        tower = self.tower(model)
        tokens = super().tokens_from_patches(model, values, grid_thw, mean)
        window = tower.window_size // tower.spatial_merge_size // tower.patch_size
        order = window_order(grid_thw, tower.spatial_merge_size, window).to(tokens.device)
        out = torch.empty_like(tokens)
        out[order] = tokens
        return out


def window_order(grid_thw: Tensor, merge: int, window: int) -> Tensor:
    """LongTensor [tokens]: token that stands at each place of the window-by-window order, over all images."""
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
