"""InternVL: square tiles plus a thumbnail (last), a tower with CLS, 2 x 2 patches folded into a token."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import Tile
from vtc.models.family import Adapter, FrameMarks, ImageLayout, Known, frames_layout


class InternVLAdapter(Adapter):
    """How the tiles are arranged in the picture is not part of the model's input: only the thumbnail has a box.

    Nor is whether one-tile images are the frames of a video: only the words before them tell, so that the processor is
    needed to find videos.
    """

    model_types = ("internvl",)
    joins_pieces = True

    def reads_videos(self, model: nn.Module) -> bool:
        return True  # as numbered images

    def fold(self, model: nn.Module) -> int:
        config: Any = model.config
        return round(1 / config.downsample_ratio)

    def tokens_from_patches(self, model: nn.Module, values: Tensor, mean: bool) -> Tensor:
        fold = self.fold(model)
        side = round(values.shape[1] ** 0.5)
        cells = values.unflatten(1, (side // fold, fold, side // fold, fold))  # [B, h, f, w, f, ...]
        folded = cells.mean(dim=(2, 4)) if mean else cells.sum(dim=(2, 4))
        return folded.flatten(0, 2)

    def frame_marks(self, processor: Any) -> FrameMarks | None:
        if processor is None:
            return None
        tokenizer, start = processor.tokenizer, processor.start_image_token
        return cache(lambda frame: tokenizer.encode(f"Frame{frame}: {start}", add_special_tokens=False))

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        config: Any = model.config.vision_config
        size, patch = (x[0] if isinstance(x, list | tuple) else x for x in (config.image_size, config.patch_size))
        side = round(size // patch * model.config.downsample_ratio)
        per_tile = side * side
        n = features.shape[0]
        tiles, left = divmod(n, per_tile)
        if left:
            raise ValueError(f"{n} visual tokens are no multiple of the {per_tile} of one tile.")
        if known.modality == "video":
            return frames_layout(tiles, side, torch.arange(side))
        index = torch.arange(n)
        if tiles == 1:
            blocks = (Tile(0, 1, side, side),)
        else:
            crops = tuple(Tile(i * per_tile, 1, side, side, role="crop", box=None) for i in range(tiles - 1))
            blocks = (*crops, Tile((tiles - 1) * per_tile, 1, side, side, role="thumbnail"))
        return ImageLayout((1, side, side), blocks, index, index // per_tile, n, tiles)
