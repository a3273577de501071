"""Vision towers of families that the default one carries: GLM's, ERNIE's, Idefics', Ovis', and others' packed rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vtc.models.tower import SiglipTower, Tower, unshared
from vtc.models.tower_qwen import Qwen3Tower, Qwen25Tower, QwenTower, rotated_patches


class GlmTower(QwenTower):
    """Qwen2-VL's blocks; learned positions, resampled to each picture's grid, are added to the patches."""

    model_types = ("glm4v_vision", "glm4v_moe_vision")


class Qwen3OmniTower(Qwen3Tower):
    """Qwen3-VL's, under a name of its own."""

    model_types = ("qwen3_omni_moe_vision_encoder",)


class ErnieTower(QwenTower):
    """Qwen2-VL's blocks without its merger: pairs of frames become tokens behind the tower, by the grids of whole
    pictures."""

    model_types = ("ernie4_5_vl_moe_vision",)

    def check_cut(self, tower: Any) -> None:
        raise ValueError(_WHOLE)


class ApartTower(QwenTower):
    """Packed rows in which the patches of a token follow each other, queries and keys projected apart."""

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.q_proj, attention.k_proj

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        return packed_heads(self, attention, q, k, inputs, grid_thw)

    def check(self, tower: Any) -> None:
        raise ValueError(_APART)

    def check_cut(self, tower: Any) -> None:
        raise ValueError(_WHOLE)


class GlmOcrTower(ApartTower):
    """Queries and keys go through norms."""

    model_types = ("glm_ocr_vision",)

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.q_norm, attention.k_norm


class Cosmos3EdgeTower(ApartTower):
    """SigLIP 2's blocks: no rotation."""

    model_types = ("cosmos3_edge_vision",)

    def blocks(self, tower: Any) -> Any:
        return tower.encoder.layers

    def attentions(self, tower: Any) -> list[Any]:
        return [block.self_attn for block in self.blocks(tower)]


class Qwen25OmniTower(ApartTower, Qwen25Tower):
    """Qwen2.5-VL's windows."""

    model_types = ("qwen2_5_omni_vision_encoder",)

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.q, attention.k


class RowTower(Tower):
    """Packed rows, picture after picture, whose patches lie line by line."""

    takes = "row"

    def blocks(self, tower: Any) -> Any:
        return tower.layers

    def check(self, tower: Any) -> None:
        raise ValueError(_APART)

    def segments(self, inputs: dict[str, Any]) -> list[int] | None:
        return inputs["cu_seqlens"].diff().tolist()

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        return packed_heads(self, attention, q, k, inputs, grid_thw)

    def tokens_from_patches(
        self, tower: Any, values: Tensor, grid_thw: Tensor | None, mean: bool, kept: Tensor | None = None
    ) -> Tensor:
        values = super().tokens_from_patches(tower, values, grid_thw, mean, kept)
        return values if mean or grid_thw is None else unshared(values, grid_thw)


class KimiTower(RowTower):
    """All frames of a video see each other."""

    model_types = ("kimi_k25_vision",)

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attn for block in self.blocks(tower)]


class HunYuanVLTower(RowTower):
    model_types = ("hunyuan_vl_vision",)


class PaddleOcrTower(RowTower):
    model_types = ("paddleocr_vl_vision",)

    def blocks(self, tower: Any) -> Any:
        return tower.vision_model.encoder.layers


class IdeficsTower(SiglipTower):
    """SigLIP's, one crop a row; patches of padding, where a crop has any, are hidden from the others."""

    model_types = ("idefics3_vision", "smolvlm_vision")


class Ovis2Tower(SiglipTower):
    model_types = ("ovis2_vision",)
    mean, deviation = Tower.mean, Tower.deviation

    def blocks(self, tower: Any) -> Any:
        return tower.transformer.encoder.layers

    def encoder(self, tower: Any) -> nn.Module:
        return tower.transformer.encoder

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attention for block in self.blocks(tower)]

    def check_cut(self, tower: Any) -> None:
        raise ValueError(_WHOLE)


class GraniteDoclingTower(SiglipTower):
    """SigLIP's blocks, between which features are taken for later decoder layers."""

    model_types = ("granite_docling_vision",)

    def check(self, tower: Any) -> None:
        raise ValueError(
            "this tower hands over what comes out of several of its blocks, which patches that merge within would "
            "change: choose a method of the stage 'input'."
        )

    def check_cut(self, tower: Any) -> None:
        raise ValueError(_WHOLE)


TOWERS_LISTED: tuple[type[Tower], ...] = (
    GlmTower,
    Qwen3OmniTower,
    ErnieTower,
    GlmOcrTower,
    Cosmos3EdgeTower,
    Qwen25OmniTower,
    KimiTower,
    HunYuanVLTower,
    PaddleOcrTower,
    IdeficsTower,
    Ovis2Tower,
    GraniteDoclingTower,
)

_WHOLE = (
    "what follows this vision tower makes tokens of whole pictures, so that no patch can be left out before it: choose "
    "a method of the stage 'input'."
)
_APART = (
    "this vision tower projects queries and keys of packed pictures in a way that leaves no room for how much a merged "
    "patch weighs: choose a method of the stage 'input'."
)


def packed_heads(
    tower: Tower, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys [1, H, T, d] of each stretch that attends within itself, rotated where the tower rotates.

    Args:
        q, k: [T, H * d], [1, T, H * d] or [T, H, d].
    """
    heads = tower.heads_of(attention)
    patches = q.shape[1 if len(q) == 1 else 0]  # of one patch alone, either
    apart = [x.reshape(patches, heads, -1) for x in (q, k)]
    tables = inputs.get("position_embeddings")
    if tables is not None:
        cos, sin = (x.float().unsqueeze(1) for x in tables)  # [T, 1, d]
        apart = [rotated_patches(x.float(), cos, sin) for x in apart]
    lengths = _lengths(tower, inputs, grid_thw)
    packed = [x.transpose(0, 1).split(lengths, dim=1) for x in apart]
    return [(a.unsqueeze(0), b.unsqueeze(0)) for a, b in zip(*packed, strict=True)]


def _lengths(tower: Tower, inputs: dict[str, Any], grid_thw: Tensor | None) -> list[int]:
    """Patches of each stretch: of each frame or picture, by the grids, which lie in main memory, if that is right."""
    count = len(inputs["cu_seqlens"]) - 1
    if grid_thw is not None:
        frames = [h * w for t, h, w in grid_thw.tolist() for _ in range(t)]
        pictures = grid_thw.prod(dim=1).tolist()
        for lengths in (frames, pictures):
            if len(lengths) == count:
                return lengths
    found = tower.segments(inputs)
    assert found is not None
    return found
