"""LLaVA-NeXT and LLaVA-OneVision: any-resolution pictures as a thumbnail plus a mosaic of crops.

The mosaic is cut back to the picture's own aspect ratio, scaled down if it is too large (OneVision), and every row of
it ends with the learned `image_newline` row. The cut is not part of the language model's input, so it is read back from
the tokens: newline rows are exact copies of one parameter. Where several mosaics leave the same tokens, the number of
crops that the tower saw decides.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtc.layout import Tile, VisualSpan
from vtc.models.family import ImageLayout, Known, frames_layout, square_layout
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

    def crop_projector(self, model: nn.Module) -> nn.Module | None:
        return self.base(model).multi_modal_projector

    def separator(self, model: nn.Module) -> Tensor:
        return self.base(model).image_newline

    def crop_counts(self, model: nn.Module, features: Tensor, known: Known) -> list[int]:
        found = self._mosaics(model, features, known)
        counts = [1 + m.crops_h * m.crops_w for m in found] if found else [1]
        if not found:  # a single crop, or a picture so thin that no patch of its mosaic is left
            config: Any = model.config
            size = config.vision_config.image_size
            counts += sorted({1 + (h // size) * (w // size) for h, w in config.image_grid_pinpoints})
        return list(dict.fromkeys(counts))

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        if known.modality == "video":
            return self.video_layout(model, features)
        side, rows, cols = self._shape(model, features, known)
        per_crop = side * side
        if cols == 0:
            crops = known.crops or 1
            one = square_layout(per_crop, "image" if crops == 1 else "thumbnail")
            ends = torch.full((rows,), -1)
            patch, crop = torch.cat([one.patch, ends]), torch.cat([one.crop, ends])
            return ImageLayout(one.grid, one.tiles, patch, crop, per_crop * crops, crops)
        found = self._mosaics(model, features, known)
        fitting = [m for m in found if known.crops in (None, 1 + m.crops_h * m.crops_w)]
        if not fitting:
            raise ValueError(f"no arrangement of {known.crops} crops leaves a mosaic of {rows} x {cols} visual tokens.")
        mosaic = fitting[0]
        y = _sample(rows, mosaic.cut_h, mosaic.crops_h * side)  # mosaic row of each token row
        x = _sample(cols, mosaic.cut_w, mosaic.crops_w * side)
        crop = 1 + (y // side)[:, None] * mosaic.crops_w + (x // side)[None, :]  # [rows, cols]
        patch = crop * per_crop + (y % side)[:, None] * side + (x % side)[None, :]
        separator = torch.full((rows, 1), -1)
        thumbnail = square_layout(per_crop, "thumbnail")
        return ImageLayout(
            grid=(1, rows, cols),
            tiles=(*thumbnail.tiles, Tile(per_crop, 1, rows, cols, newline=True, role="mosaic")),
            patch=torch.cat([thumbnail.patch, torch.cat([patch, separator], dim=1).flatten()]),
            crop=torch.cat([thumbnail.crop, torch.cat([crop, separator], dim=1).flatten()]),
            tower_tokens=per_crop * (1 + mosaic.crops_h * mosaic.crops_w),
            crops=1 + mosaic.crops_h * mosaic.crops_w,
        )

    def one_patch_each(self, model: nn.Module, span: VisualSpan) -> bool:
        """Not where frames are pooled, or a mosaic that is too large is scaled down."""
        most, crops = self.max_crops(model), int(span.crop.max())  # the mosaic's, the thumbnail is number 0
        return span.modality == "image" and (most is None or crops <= most)

    def video_layout(self, model: nn.Module, features: Tensor) -> ImageLayout:
        """Arrangement of the visual tokens [N, D] of one video, for families that read videos."""
        raise ValueError(f"{self.model_types[0]} does not read videos.")

    def _side(self, model: nn.Module) -> int:
        """Patches along a crop."""
        config: Any = model.config.vision_config
        return config.image_size // config.patch_size

    def _shape(self, model: nn.Module, features: Tensor, known: Known) -> tuple[int, int, int]:
        """Tokens along a crop, rows and columns of the mosaic; columns are 0 if only newlines follow the thumbnail."""
        side = self._side(model)
        n, per_crop = features.shape[0], side * side
        found = known.separators
        if found is None:
            found = (features == self.separator(model).to(features)).all(dim=-1)
        breaks = found.nonzero().flatten().tolist()
        rows = len(breaks)
        cols = breaks[0] - per_crop if breaks else 0
        if (
            cols < 0
            or n != per_crop + rows * (cols + 1)
            or breaks != [per_crop + cols + r * (cols + 1) for r in range(rows)]
        ):
            raise ValueError(f"{n} visual tokens are no thumbnail of {per_crop} followed by rows that end in newlines.")
        return side, rows, cols

    def _mosaics(self, model: nn.Module, features: Tensor, known: Known) -> list[Mosaic]:
        whole: Any = model.config
        side, rows, cols = self._shape(model, features, known)
        size = whole.vision_config.image_size
        pinpoints = tuple((h // size, w // size) for h, w in whole.image_grid_pinpoints)
        return find_mosaics(rows, cols, side, pinpoints, self.max_crops(model)) if cols else []


class LlavaOnevisionAdapter(LlavaNextAdapter):
    model_types = ("llava_onevision",)
    mixes = ("image", "video")

    def max_crops(self, model: nn.Module) -> int | None:
        config: Any = model.config
        return int(config.vision_aspect_ratio.removeprefix("anyres_max_"))

    def video_layout(self, model: nn.Module, features: Tensor) -> ImageLayout:
        side = self._side(model)
        rows = math.ceil(side / 2)  # frames are scaled down to half; one newline ends the video
        frames, left = divmod(len(features) - 1, rows * rows)
        if left or not frames:
            raise ValueError(f"{len(features)} visual tokens are no frames of {rows} x {rows} and one newline.")
        places = ((torch.arange(rows) + 0.5) * side / rows).long()
        return frames_layout(frames, side, places, separators=1)


class LlavaNextVideoAdapter(LlavaNextAdapter):
    model_types = ("llava_next_video",)
    mixes = ("video",)

    def video_layout(self, model: nn.Module, features: Tensor) -> ImageLayout:
        side, config = self._side(model), model.config
        stride: Any = config.spatial_pool_stride
        rows = side // stride
        frames, left = divmod(len(features), rows * rows)
        if left or not frames:
            raise ValueError(f"{len(features)} visual tokens are no frames of {rows} x {rows}.")
        return frames_layout(frames, side, torch.arange(rows) * stride + stride // 2)


def _sample(tokens: int, cut: int, full: int) -> Tensor:
    """Position in the full mosaic of each of `tokens` rows that show its middle `cut` rows: the nearest one."""
    margin = (full - cut) // 2
    return margin + (2 * torch.arange(tokens) + 1) * cut // (2 * tokens)


@lru_cache(maxsize=4096)
def find_mosaics(
    rows: int, cols: int, side: int, pinpoints: tuple[tuple[int, int], ...], max_crops: int | None
) -> list[Mosaic]:
    """Every mosaic that, cut to some aspect ratio and scaled, leaves rows x cols tokens; the likeliest first.

    Cutting removes equally much on both sides of one axis only. Large pictures can leave the same rows x cols through
    different mosaics (OneVision scales 4 x 4 crops down to the size of 3 x 3). The smallest stands first, and of
    equally large ones the one that shows most of the picture, as the processor chooses. Several cuts of one mosaic can
    scale to the same rows x cols: the middle one is at most a patch off.
    """
    found = []
    for crops_h, crops_w in pinpoints:
        full_h, full_w = crops_h * side, crops_w * side
        cuts = [(h, full_w) for h in range(full_h, 0, -2)] + [(full_h, w) for w in range(full_w, 0, -2)]
        fitting = [cut for cut in cuts if _scaled(*cut, side, max_crops) == (rows, cols)]
        if fitting:
            found.append(Mosaic(crops_h, crops_w, *fitting[len(fitting) // 2]))
    if not found:
        raise ValueError(f"no crop arrangement of this model leaves a mosaic of {rows} x {cols} visual tokens.")
    return sorted(found, key=lambda m: (m.crops_h * m.crops_w, -m.cut_h * m.cut_w))


def _scaled(h: int, w: int, side: int, max_crops: int | None) -> tuple[int, int]:
    if max_crops is None:
        return h, w
    ratio = math.sqrt(h * w / (max_crops * side**2))
    return (int(h // ratio), int(w // ratio)) if ratio > 1.1 else (h, w)
