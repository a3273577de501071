"""The vision transformers of timm, by class: they have no model type."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.models.tower import Groups, Tower, tower_for


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


class WrappedTower(Tower):
    """One of timm's in transformers' wrapper, as a part of a vision-language model."""

    model_types = ("timm_wrapper",)
    takes = "rectangle"

    def of(self, tower: Any) -> Tower:
        inner, found = tower.timm_model, tower_for(tower.timm_model)
        if not isinstance(found, EvaTower | FastVitTower):
            raise ValueError(f"{type(inner).__name__} is no vision tower that vtc knows in transformers' wrapper.")
        if isinstance(found, FastVitTower):
            return found
        return _EVA_WITH_CLS if found.cls_first(inner) else _EVA


class WrappedEva(EvaTower):
    """Perception Encoder: patches of square crops."""

    class_names = ()
    takes = "rectangle"
    mean = deviation = (0.5, 0.5, 0.5)

    def blocks(self, tower: Any) -> Any:
        return tower.timm_model.blocks

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attn for block in self.blocks(tower)]

    def prefix(self, tower: Any) -> int:
        return tower.timm_model.num_prefix_tokens

    def cls_first(self, tower: Any) -> bool:
        return tower.timm_model.cls_token is not None

    def checkpoints(self, tower: Any) -> bool:
        return tower.timm_model.grad_checkpointing

    def patch_side(self, tower: Any) -> int:
        return tower.timm_model.patch_embed.patch_size[0]

    def encoder(self, tower: Any) -> nn.Module:
        raise ValueError(_WRAPPED)


class WrappedEvaWithCls(WrappedEva):
    has_cls = True


class FastVitTower(Tower):
    """FastViT-HD (FastVLM), convolutions but for its last stages: the last one attends, and a square of it becomes a
    token."""

    class_names: ClassVar[tuple[str, ...]] = ("timm.models.fastvit.FastVit",)
    takes = "rectangle"
    mean, deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def blocks(self, tower: Any) -> Any:
        return tower.timm_model.stages[-1].blocks

    def attentions(self, tower: Any) -> list[Any]:
        return [block.token_mixer for block in self.blocks(tower)]

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.qkv, attention.qkv

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        queries, keys, _ = q.unflatten(-1, (3, attention.num_heads, -1)).unbind(2)  # [B, T, H, d]
        return [(queries.transpose(1, 2), keys.transpose(1, 2))]

    def states(self, output: Any) -> Tensor:
        return output.flatten(2).mT  # of [B, D, h, w]

    def patch_side(self, tower: Any) -> int:
        return tower.timm_model.feature_info[-1]["reduction"]

    def check(self, tower: Any) -> None:
        raise ValueError(_SQUARES)

    def check_cut(self, tower: Any) -> None:
        raise ValueError(_SQUARES)


_EVA, _EVA_WITH_CLS = WrappedEva(), WrappedEvaWithCls()
_WRAPPED = (
    "this vision tower has no module around its blocks, before which patches could be left out: choose a method of the "
    "stage 'input'."
)
_SQUARES = (
    "this vision tower is convolutional but for its last stages, whose squares of the picture stay a square: choose a "
    "method of the stage 'input'."
)
