"""Families whose language models have recurrent layers (linear attention, convolutions) between those that attend.

A recurrent layer keeps a state of one size. Tokens that leave before it are never in that state; behind it, nothing can
be taken out again: methods of the stage `cache` act in the layers that attend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtc.models.default import DefaultAdapter, FramesAdapter, cells, of_pictures, row_layout, shared
from vtc.models.family import Adapter, ImageLayout, Known
from vtc.models.qwen_vl import QwenVLAdapter


class Qwen35Adapter(QwenVLAdapter):
    """Three layers of four are gated delta networks; Qwen3-VL's tower, without DeepStack."""

    model_types = ("qwen3_5", "qwen3_5_moe")


class Lfm2VlAdapter(DefaultAdapter):
    """Short convolutions in most layers. Tiles of a picture stand apart, between words that say where in the picture
    they are, so that each is a picture of its own here; of any size, padded to the largest in the tower."""

    model_types = ("lfm2_vl",)

    def check(self, model: nn.Module) -> None:
        config: Any = model.config
        if getattr(config.text_config, "conv_bias", False):
            raise ValueError(
                "the convolutions of this lfm2_vl have a bias, which makes something of padding: rows of a batch that "
                "keep unequally many tokens would not be what they are alone."
            )

    def merge(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.downsample_factor

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        return of_pictures(kwargs["spatial_shapes"])

    def merged(self, model: nn.Module, values: Tensor, grid_thw: Tensor | None, mean: bool) -> Tensor:
        assert grid_thw is not None
        grids = grid_thw.tolist()
        if values.shape[1] != sum(h * w for _, h, w in grids):  # a row per picture, its patches before padding
            values = torch.cat([row[: h * w] for row, (_, h, w) in zip(values, grids, strict=True)])[None]
        return cells(values[0], grids, self.merge(model), mean)


class MiniCpmV46Adapter(FramesAdapter):
    """Qwen3.5's language model, with positions in a row. Slices of a picture stand apart, each a picture of its own
    here; a token is 4 x 4 patches, or 2 x 2 where the model, or a call, says downsample_mode="4x".

    A video is its frames, one close behind the other, each followed by its slices, if it has any: those of a video with
    slices lie on no grid.
    """

    model_types = ("minicpmv4_6",)

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        return of_pictures(kwargs["target_sizes"])

    def frame_numbers(self, ids: Tensor, visual: Tensor) -> Tensor:
        """What opens a frame, or a slice, follows what closes the one before, and in places a line break; another video
        has a number before it, or other words.

        Example: < > stand around a frame, [ ] around a slice, v = visual

            token     < v v > [ v ] \n [ v ] < v v > [ v ] \n [ v ] ? < v v >
            number      1 1     -1       -1     2 2     -2       -2      1 1
        """
        found = torch.zeros(visual.shape, dtype=torch.long)
        last = Unit(-1, 0, 0, 0)
        for row, start, end in runs_of(visual):
            opens = int(ids[row, start - 1]) if start else -1
            gap = start - last.end if row == last.row else 0
            part = gap in (2, 3) and opens != last.opens
            number = last.number if part else last.number + 1 if gap == 2 else 1
            found[row, start:end] = -number if part else number
            last = Unit(row, end, number, last.opens if part else opens)
        return found

    def picture_grids(self, model: nn.Module, grids: list[list[int]], sizes: list[int], modality: str) -> list[Any]:
        if modality == "image":
            return grids
        patches = sum(h * w for _, h, w in grids) // max(1, sum(sizes))  # that make a token
        videos = shared(grids, [tokens * patches for tokens in sizes])
        alike = [all(unit == units[0] for unit in units) for units in videos]
        return [(len(units), *(units[0][1:] if same else (0, 0))) for units, same in zip(videos, alike, strict=True)]

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        if known.thw is None:
            return row_layout(len(features))
        t, h, w = known.thw
        if known.modality == "video" and (not h or known.frames not in (None, t)):
            return replace(row_layout(len(features)), crops=t)
        merge = round((t * h * w / len(features)) ** 0.5)
        return super().layout(model, features, known._replace(thw=(t, h // merge, w // merge)))


class Unit(NamedTuple):
    """A frame of a video, or a slice of one: its row, where its tokens end, the number of its frame, and what opened
    the frame."""

    row: int
    end: int
    number: int
    opens: int


def runs_of(visual: Tensor) -> list[tuple[int, int, int]]:
    """(row, start, end) of each unbroken run of True in [B, L]."""
    edges = torch.nn.functional.pad(visual.int(), (1, 1)).diff(dim=1)
    starts, ends = (edges == 1).nonzero().tolist(), (edges == -1).nonzero().tolist()
    return [(row, start, end) for (row, start), (_, end) in zip(starts, ends, strict=True)]


class NemotronOmniAdapter(FramesAdapter):
    """State spaces in most layers, and no positions: what is left of a row is told apart by its order alone. Patches of
    pictures of any size are packed, 2 x 2 of which make a token; two frames of a video are one picture of six channels,
    written with the placeholder of pictures. Sounds are none of vtc's business."""

    model_types = ("nemotron_h_omni",)
    whole = "NemotronH_Omni_Reasoning_V3"
    rebuilds = True

    def base(self, model: nn.Module) -> Any:
        return model

    def language_model(self, model: nn.Module) -> Any:
        whole: Any = model
        return whole.language_model.model

    def merge(self, model: nn.Module) -> int:
        config: Any = model.config
        return round(1 / config.downsample_ratio)

    def token_id(self, model: nn.Module, modality: str) -> int:
        whole: Any = model
        if modality == "video" and whole.video_pruning_rate > 0:
            raise ValueError(
                f"this nemotron_h_omni leaves out {whole.video_pruning_rate:.0%} of a video's tokens by itself, in a "
                "way that vtc cannot follow: set model.video_pruning_rate = 0, and give keep= of evs, the same method."
            )
        return super().token_id(model, "image")  # of both

    def entering(self, model: nn.Module, features: Any, given: Mapping[str, Any], modality: str) -> Any:
        pixels = given.get("pixel_values_videos")
        if features is not None or modality == "image" or pixels is None:
            return features
        side = self.tower(model).patch_size * self.merge(model)
        tokens = pixels.shape[1] * (pixels.shape[-2] // side) * (pixels.shape[-1] // side)
        return [pixels.new_empty(tokens, 0) for _ in pixels]

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        sizes = kwargs.get("image_grid_hw")
        if sizes is not None:
            return of_pictures(sizes)
        radio: Any = tower
        pixels: Tensor = args[0] if args else kwargs["pixel_values"]  # [frames, channels, height, width]
        sides = [side // radio.patch_size for side in pixels.shape[-2:]]
        return of_pictures([sides] * len(pixels))


HYBRID: tuple[type[Adapter], ...] = (Qwen35Adapter, Lfm2VlAdapter, MiniCpmV46Adapter, NemotronOmniAdapter)
