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

    def layout(
        self, model: nn.Module, features: Tensor, image: int, grid_thw: Tensor | None, crops: int | None = None
    ) -> ImageLayout:
        whole: Any = model.config
        config = whole.vision_config
        side = config.image_size // config.patch_size  # tokens along one crop
        per_crop = side * side
        n = features.shape[0]
        newline = self.base(model).image_newline.to(features)
        breaks = (features == newline).all(dim=-1).nonzero().flatten().tolist()
        thumbnail = square_layout(per_crop, "thumbnail")
        if n >= per_crop and breaks == list(range(per_crop, n)):
            # A single crop and one newline, or a picture so thin that no whole patch of the mosaic shows it.
            crops = crops or 1
            one = square_layout(per_crop, "image" if crops == 1 else "thumbnail")
            ends = torch.full((n - per_crop,), -1)
            patch, crop = torch.cat([one.patch, ends]), torch.cat([one.crop, ends])
            return ImageLayout(one.grid, one.tiles, patch, crop, per_crop * crops, crops)
        cols = breaks[0] - per_crop if breaks else 0
        rows = len(breaks)
        if cols < 1 or breaks != [per_crop + cols + r * (cols + 1) for r in range(rows)]:
            raise ValueError(f"{n} visual tokens are no thumbnail of {per_crop} followed by rows that end in newlines.")
        pinpoints = tuple((h // config.image_size, w // config.image_size) for h, w in whole.image_grid_pinpoints)
        mosaic = find_mosaic(rows, cols, side, pinpoints, self.max_crops(model), crops)
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
        config: Any = model.config
        return int(config.vision_aspect_ratio.removeprefix("anyres_max_"))


def _sample(tokens: int, cut: int, full: int) -> Tensor:
    """Position in the full mosaic of each of `tokens` rows that show its middle `cut` rows: the nearest one."""
    margin = (full - cut) // 2
    return margin + (2 * torch.arange(tokens) + 1) * cut // (2 * tokens)


@lru_cache(maxsize=4096)
def find_mosaic(
    rows: int,
    cols: int,
    side: int,
    pinpoints: tuple[tuple[int, int], ...],
    max_crops: int | None,
    crops: int | None = None,
) -> Mosaic:
    """The mosaic that, cut to some aspect ratio and scaled, leaves rows x cols tokens.

    Cutting removes equally much on both sides of one axis only. Large pictures can leave the same rows x cols through
    different mosaics (OneVision scales 4 x 4 crops down to the size of 3 x 3), so the number of crops decides where it
    is known; where it is not, the smallest mosaic is taken. Of equally large ones the processor takes the one that
    shows most of the picture. Several cuts can scale to the same rows x cols: the middle one is at most a patch off.

    Args:
        crops: crops of the picture, thumbnail included, or None.
    """
    found = []
    for crops_h, crops_w in pinpoints:
        if crops is not None and 1 + crops_h * crops_w != crops:
            continue
        full_h, full_w = crops_h * side, crops_w * side
        cuts = [(h, full_w) for h in range(full_h, 0, -2)] + [(full_h, w) for w in range(full_w, 0, -2)]
        fitting = [cut for cut in cuts if _scaled(*cut, side, max_crops) == (rows, cols)]
        if fitting:
            found.append(Mosaic(crops_h, crops_w, *fitting[len(fitting) // 2]))
    if found:
        return min(found, key=lambda m: (m.crops_h * m.crops_w, -m.cut_h * m.cut_w))
    raise ValueError(f"no crop arrangement of this model leaves a mosaic of {rows} x {cols} visual tokens.")


def _scaled(h: int, w: int, side: int, max_crops: int | None) -> tuple[int, int]:
    if max_crops is None:
        return h, w
    ratio = math.sqrt(h * w / (max_crops * side**2))
    return (int(h // ratio), int(w // ratio)) if ratio > 1.1 else (h, w)
