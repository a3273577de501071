"""LLaVA-NeXT and LLaVA-OneVision: any-resolution pictures as a thumbnail plus a mosaic of crops.

The mosaic is cut back to the picture's own aspect ratio, scaled down if it is too large (OneVision), and every row of
it ends with the learned `image_newline` row. The number of crops and the cut are not part of the language model's
input, so they are read back from the tokens: newline rows are exact copies of one parameter.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtc.layout import Tile
from vtc.models.base import ImageLayout, square_layout
from vtc.models.llava import LlavaAdapter


class Mosaic(NamedTuple):
    """crops_h x crops_w crops, of which the middle cut_h x cut_w patches show the picture."""

    crops_h: int
    crops_w: int
    cut_h: int
    cut_w: int


class LlavaNextAdapter(LlavaAdapter):
    model_types = ("llava_next",)

    def max_crops(self, model: nn.Module) -> int | None:
        """Mosaics larger than this many crops are scaled down."""
        return None

    def layout(self, model: nn.Module, features: Tensor, image: int, grid_thw: Tensor | None) -> ImageLayout:
        config: Any = model.config.vision_config
        side = config.image_size // config.patch_size  # tokens along one crop
        per_crop = side * side
        n = features.shape[0]
        newline = self.base(model).image_newline.to(features)
        breaks = (features == newline).all(dim=-1).nonzero().flatten().tolist()
        thumbnail = square_layout(per_crop, "thumbnail")
        if n == per_crop + 1 and breaks == [per_crop]:  # a single crop, closed by one newline
            one = square_layout(per_crop)
            end = torch.tensor([-1])
            patch, crop = torch.cat([one.patch, end]), torch.cat([one.crop, end])
            return ImageLayout(one.grid, one.tiles, patch, crop, per_crop)
        cols = breaks[0] - per_crop if breaks else 0
        rows = len(breaks)
        if cols < 1 or breaks != [per_crop + cols + r * (cols + 1) for r in range(rows)]:
            raise ValueError(f"{n} visual tokens are no thumbnail of {per_crop} followed by rows that end in newlines.")
        pinpoints = tuple((h // config.image_size, w // config.image_size) for h, w in model.config.image_grid_pinpoints)
        mosaic = find_mosaic(rows, cols, side, pinpoints, self.max_crops(model))
        y = _sample(rows, mosaic.cut_h, mosaic.crops_h * side)  # mosaic row of each token row
        x = _sample(cols, mosaic.cut_w, mosaic.crops_w * side)
        crop = 1 + (y // side)[:, None] * mosaic.crops_w + (x // side)[None, :]  # [rows, cols]
        patch = crop * per_crop + (y % side)[:, None] * side + (x % side)[None, :]
        separator = torch.full((rows, 1), -1)
        tiles = (*thumbnail.tiles, Tile(per_crop, 1, rows, cols, newline=True, role="mosaic"))
        return ImageLayout(
            grid=(1, rows, cols),
            tiles=tiles,
            patch=torch.cat([thumbnail.patch, torch.cat([patch, separator], dim=1).flatten()]),
            crop=torch.cat([thumbnail.crop, torch.cat([crop, separator], dim=1).flatten()]),
            tower_tokens=per_crop * (1 + mosaic.crops_h * mosaic.crops_w),
            crops=1 + mosaic.crops_h * mosaic.crops_w,
        )


class LlavaOnevisionAdapter(LlavaNextAdapter):
    model_types = ("llava_onevision",)

    def max_crops(self, model: nn.Module) -> int | None:
        return int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))


def _sample(tokens: int, cut: int, full: int) -> Tensor:
    """Position in the full mosaic of each of `tokens` rows that show its middle `cut` rows: the nearest one."""
    margin = (full - cut) // 2
    return margin + ((torch.arange(tokens) + 0.5) * cut / tokens).long()


@lru_cache(maxsize=4096)
def find_mosaic(
    rows: int, cols: int, side: int, pinpoints: tuple[tuple[int, int], ...], max_crops: int | None
) -> Mosaic:
    """The smallest mosaic that, cut to some aspect ratio and scaled, leaves rows x cols tokens.

    Cutting removes equally much on both sides of one axis only. The processor picks the resolution that wastes least,
    so the smallest candidate is the one it took.
    """
    for crops_h, crops_w in sorted(set(pinpoints), key=lambda p: p[0] * p[1]):
        full_h, full_w = crops_h * side, crops_w * side
        cuts = [(h, full_w) for h in range(full_h, 0, -2)] + [(full_h, w) for w in range(full_w, 0, -2)]
        for cut_h, cut_w in cuts:
            if _scaled(cut_h, cut_w, side, max_crops) == (rows, cols):
                return Mosaic(crops_h, crops_w, cut_h, cut_w)
    raise ValueError(f"no crop arrangement of this model leaves a mosaic of {rows} x {cols} visual tokens.")


def _scaled(h: int, w: int, side: int, max_crops: int | None) -> tuple[int, int]:
    if max_crops is None:
        return h, w
    ratio = math.sqrt(h * w / (max_crops * side**2))
    return (int(h // ratio), int(w // ratio)) if ratio > 1.1 else (h, w)
