"""The vision transformers of timm, by class: they have no model type."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from vtc.models.tower import Tower


class TimmTower(Tower):
    """VisionTransformer (ViT, DeiT with its distillation token, DINOv2, SigLIP, CLIP's, with registers or without)."""

    class_names: ClassVar[tuple[str, ...]] = ("timm.models.vision_transformer.VisionTransformer",)

    def blocks(self, tower: Any) -> Any:
        return tower.blocks

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attn for block in tower.blocks]

    def prefix(self, tower: Any) -> int:
        return tower.num_prefix_tokens

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.q_norm, attention.k_norm  # identities where there is no norm

    def heads(self, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def metric(self, attention: Any, k: Tensor) -> Tensor:
        return k.mean(dim=1)

    def check_bias(self, tower: Any) -> None:
        """Fused or not, its attention adds a mask."""

    def checkpoints(self, tower: Any) -> bool:
        return tower.grad_checkpointing

    def with_bias(self, attention: Any, kwargs: dict[str, Any], bias: Tensor) -> dict[str, Any]:
        return {**kwargs, "attn_mask": bias[:, None, None]}
