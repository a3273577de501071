"""Vision towers of families that the default one carries: GLM's, ERNIE's, Idefics', Ovis', and others' packed rows."""

from __future__ import annotations

from typing import Any

import torch
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


class VideoLlama3Tower(ApartTower):
    """SigLIP's blocks, rotated. How many patches a side become a token is said for each picture: it stands behind its
    grid here, (t, h, w, merge)."""

    model_types = ("video_llama_3_vision",)
    varies = True
    mean = deviation = (0.5, 0.5, 0.5)

    def blocks(self, tower: Any) -> Any:
        return tower.encoder.layers

    def attentions(self, tower: Any) -> list[Any]:
        return [block.self_attn for block in self.blocks(tower)]

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        return packed_heads(self, attention, q, k, inputs, None if grid_thw is None else grid_thw[:, :3])

    def tokens_from_patches(
        self, tower: Any, values: Tensor, grid_thw: Tensor | None, mean: bool, kept: Tensor | None = None
    ) -> Tensor:
        assert grid_thw is not None
        grids, merges = grid_thw[:, :3], grid_thw[:, 3].tolist()
        values = values if mean else unshared(values, grids)
        pictures = values[0].split(grids.prod(dim=1).tolist())
        groups = [x.unflatten(0, (-1, merge**2)) for x, merge in zip(pictures, merges, strict=True)]
        return torch.cat([x.mean(dim=1) if mean else x.sum(dim=1) for x in groups])[None]


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

    model_types = ("idefics2_vision", "idefics3_vision", "smolvlm_vision")


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


class SamTower(Tower):
    """SAM's image encoder (GOT-OCR 2), of square pages: most blocks attend within windows, padded where the page ends,
    and all add something for how far a key is above or below, and to the side."""

    model_types = ("got_ocr2_vision", "pp_chart2table_vision")
    takes = "rectangle"

    def blocks(self, tower: Any) -> Any:
        return tower.layers

    def attentions(self, tower: Any) -> list[Any]:
        return [block.attn for block in self.blocks(tower)]

    def feature_layer(self, tower: Any) -> int:
        return max(tower.config.global_attn_indexes)

    def projections(self, attention: Any) -> tuple[nn.Module, nn.Module]:
        return attention.qkv, attention.qkv

    def heads_of(self, attention: Any) -> int:
        return attention.num_attention_heads

    def place_channels(self, attention: Any) -> int:
        if not attention.use_rel_pos:
            return 0
        return (len(attention.rel_pos_h) + 1) // 2 + (len(attention.rel_pos_w) + 1) // 2  # h rows and w columns

    def queries_keys(
        self, attention: Any, q: Tensor, k: Tensor, inputs: dict[str, Any], grid_thw: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """What is added for a query and a key's row is a product, too: of what the query has for each row, and of a one
        at the key's; so it is for columns."""
        _, h, w, _ = q.shape  # [B, h, w, 3 * H * d], or of each of a page's windows
        heads = q.unflatten(-1, (3, attention.num_attention_heads, -1)).permute(3, 0, 4, 1, 2, 5)
        queries, keys, _ = heads.float()  # [B, H, h, w, d]
        asked, told = queries * attention.scale, keys
        if attention.use_rel_pos:
            rows, columns = (_by_distance(x.float()) for x in (attention.rel_pos_h, attention.rel_pos_w))
            above = torch.einsum("bnhwd,hkd->bnhwk", queries, rows)
            beside = torch.einsum("bnhwd,wkd->bnhwk", queries, columns)
            lines, places = torch.eye(h, device=q.device), torch.eye(w, device=q.device)
            at = torch.cat([lines[:, None].expand(h, w, h), places[None].expand(h, w, w)], dim=-1)
            asked = torch.cat([asked, above, beside], dim=-1)
            told = torch.cat([told, at.expand(*keys.shape[:2], h, w, h + w)], dim=-1)
        asked = asked * asked.shape[-1] ** 0.5  # which is taken off again
        return [(asked.flatten(2, 3), told.flatten(2, 3))]

    def tokens_from_patches(
        self, tower: Any, values: Tensor, grid_thw: Tensor | None, mean: bool, kept: Tensor | None = None
    ) -> Tensor:
        """Windows, line by line, are put together to pages, and what they were padded with is cut off."""
        config = tower.config
        side, window = config.image_size // config.patch_size, config.window_size
        if values.shape[1] == side**2:
            return values
        n = -(-side // window)
        page = values.unflatten(1, (window, window)).unflatten(0, (-1, n, n)).transpose(2, 3)  # [B, n, w, n, w, ...]
        page = page.flatten(3, 4).flatten(1, 2)[:, :side, :side].flatten(1, 2)
        return page if mean else page / n**2  # as if all queries of the page were heard

    def states(self, output: Any) -> Tensor:
        return output.flatten(1, 2)  # of [B, h, w, D]

    def check(self, tower: Any) -> None:
        raise ValueError(_WINDOWS)

    def check_cut(self, tower: Any) -> None:
        raise ValueError(_WHOLE)


def _by_distance(table: Tensor) -> Tensor:
    """[n, n, d], of a query and a key, of what a table [2 n - 1, d] has for how far the query is behind the key."""
    n = (len(table) + 1) // 2
    here = torch.arange(n, device=table.device)
    return table[here[:, None] - here + n - 1]


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
    SamTower,
    VideoLlama3Tower,
)

_WHOLE = (
    "what follows this vision tower makes tokens of whole pictures, so that no patch can be left out before it: choose "
    "a method of the stage 'input'."
)
_WINDOWS = (
    "this vision tower attends within windows, and by how far patches are from each other, so that none can merge: "
    "choose a method of the stage 'input'."
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
