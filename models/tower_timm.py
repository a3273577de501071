"""The vision transformers of timm, by class: they have no model type."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.models.tower import Groups, Tower


class TimmTower(Tower):
    """VisionTransformer (ViT, DeiT with its distillation token, DINOv2, SigLIP, CLIP's, with registers or without)."""

    class_names: ClassVar[tuple[str, ...]] = ("timm.models.vision_transformer.VisionTransformer",)

    def blocks(self, tower: Any) -> Any:
        return tower.blocks

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attn for block in tower.blocks]

    def prefix(self, tower: Any) -> int:
        return tower.num_prefix_tokens

    def cls_first(self, tower: Any) -> bool:
        return tower.cls_token is not None

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.q_norm, attention.k_norm  # identities where there is no norm

    def heads(self, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        return [(q, k)]

    def metric(self, attention: Any, k: Tensor) -> Tensor:
        return k.mean(dim=1)

    def check_bias(self, tower: Any) -> None:
        """Fused or not, its attention adds a mask."""

    def checkpoints(self, tower: Any) -> bool:
        return tower.grad_checkpointing

    def with_bias(self, attention: Any, kwargs: dict[str, Any], bias: Tensor) -> dict[str, Any]:
        return {**kwargs, "attn_mask": bias[:, None, None]}


class EvaTower(TimmTower):
    """Eva (EVA-02, PE, DINOv3, ViTs with rotary positions), whose blocks are given a table of sines and cosines."""

    class_names: ClassVar[tuple[str, ...]] = ("timm.models.eva.Eva",)

    def with_rows(self, kwargs: dict[str, Any], anchor: Tensor, prefix: int, groups: Groups | None) -> dict[str, Any]:
        table, at = kwargs.get("rope"), anchor[:, prefix:] - prefix
        if table is None:
            return kwargs
        if table.dim() == 2:  # [patches, 2d] -> [B, 1, T, 2d]
            return {**kwargs, "rope": table[at][:, None]}
        return {**kwargs, "rope": table[:, at].transpose(0, 1)}  # [H, patches, 2d] -> [B, H, T, 2d]

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat

        table, first = inputs.get("rope"), attention.num_prefix_tokens
        if table is None:
            return [(q, k)]
        queries, keys = (
            torch.cat([x[:, :, :first], apply_rot_embed_cat(x[:, :, first:], table, half=attention.rotate_half)], dim=2)
            for x in (q, k)
        )
        return [(queries, keys)]
