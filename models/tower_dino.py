"""DINOv2 (with registers or without), DINOv3 and Pixtral, as transformers has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.tower import Groups, Tower, unshared


class DinoTower(Tower):
    model_types = ("dinov2", "dinov2_with_registers")
    has_cls = True
    takes = "rectangle"

    def blocks(self, tower: Any) -> Any:
        return tower.encoder.layer

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attention for block in self.blocks(tower)]

    def prefix(self, tower: Any) -> int:
        return 1 + getattr(tower.config, "num_register_tokens", 0)

    def heads_of(self, attention: Any) -> int:
        return attention.num_attention_heads


class RotaryTower(Tower):
    """Patches have rotary positions, (cos, sin) [patches, d] for all pictures; the tokens before them have none."""

    def with_rows(self, kwargs: dict[str, Any], anchor: Tensor, prefix: int, groups: Groups | None) -> dict[str, Any]:
        at = anchor[:, prefix:] - prefix
        tables = tuple(self.taken(table, at) for table in kwargs["position_embeddings"])
        return {**kwargs, "position_embeddings": tables}

    def taken(self, table: Tensor, at: Tensor) -> Tensor:
        """Rows `at` [B, T] of a table [patches, d], for queries [B, H, T, d]."""
        return table[at][:, None]

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        cos, sin = inputs["position_embeddings"]
        queries, keys = (rotated(x, cos, sin) for x in self.heads(attention, q, k))
        return [(queries, keys)]


class Dino3Tower(RotaryTower):
    model_types = ("dinov3_vit",)
    has_cls = True
    takes = "rectangle"

    def blocks(self, tower: Any) -> Any:
        return tower.model.layer

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attention for block in self.blocks(tower)]

    def prefix(self, tower: Any) -> int:
        return 1 + tower.config.num_register_tokens


class PixtralTower(RotaryTower):
    """Pictures of any size lie in one row; what merges or leaves between its blocks is one picture's."""

    model_types = ("pixtral",)
    takes = "row"

    def blocks(self, tower: Any) -> Any:
        return tower.transformer.layers

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attention for block in self.blocks(tower)]

    def taken(self, table: Tensor, at: Tensor) -> Tensor:
        return table[at[0]]

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.q_proj, attention.k_proj

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        ((queries, keys),) = super().queries_keys(attention, q, k, inputs, grid_thw)
        if grid_thw is None:
            return [(queries, keys)]
        lengths = grid_thw.prod(dim=1).tolist()
        return list(zip(queries.split(lengths, dim=2), keys.split(lengths, dim=2), strict=True))

    def tokens_from_patches(
        self, tower: Any, values: Tensor, grid_thw: Tensor | None, mean: bool, kept: Tensor | None = None
    ) -> Tensor:
        values = super().tokens_from_patches(tower, values, grid_thw, mean, kept)
        return values if mean or grid_thw is None or len(grid_thw) == 1 else unshared(values, grid_thw)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, d] with its last rows turned by the tables, which have as many rows as there are patches."""
    first = x.shape[2] - cos.shape[-2]
    own, patches = x[:, :, :first], x[:, :, first:]
    a, b = patches.chunk(2, dim=-1)
    return torch.cat([own, patches * cos + torch.cat([-b, a], dim=-1) * sin], dim=2)
