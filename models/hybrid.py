"""Families whose language models have recurrent layers (linear attention, convolutions) between those that attend.

A recurrent layer keeps a state of one size. Tokens that leave before it are never in that state; behind it, nothing can
be taken out again: methods of the stage `cache` act in the layers that attend.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.default import DefaultAdapter, cells, of_pictures, row_layout
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


class MiniCpmV46Adapter(DefaultAdapter):
    """Qwen3.5's language model, with positions in a row. Slices of a picture stand apart, each a picture of its own
    here; a token is 4 x 4 patches, or 2 x 2 where the model, or a call, says downsample_mode="4x"."""

    model_types = ("minicpmv4_6",)
    unread_videos = (
        "vtc does not compress the videos of minicpmv4_6, whose frames are pictures apart: give it single frames as "
        "images."
    )

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        return of_pictures(kwargs["target_sizes"])

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        if known.thw is None:
            return row_layout(len(features))
        t, h, w = known.thw
        merge = round((h * w / len(features)) ** 0.5)
        return super().layout(model, features, known._replace(thw=(t, h // merge, w // merge)))


class NemotronOmniAdapter(DefaultAdapter):
    """State spaces in most layers, and no positions: what is left of a row is told apart by its order alone. Patches of
    pictures of any size are packed, 2 x 2 of which make a token. Sounds are none of vtc's business."""

    model_types = ("nemotron_h_omni",)
    whole = "NemotronH_Omni_Reasoning_V3"
    unread_videos = (
        "vtc does not compress the videos of nemotron_h_omni, whose tokens have the placeholder of pictures: give it "
        "single frames as images."
    )

    def base(self, model: nn.Module) -> Any:
        return model

    def language_model(self, model: nn.Module) -> Any:
        whole: Any = model
        return whole.language_model.model

    def merge(self, model: nn.Module) -> int:
        config: Any = model.config
        return round(1 / config.downsample_ratio)

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        sizes = kwargs.get("image_grid_hw")
        return None if sizes is None else of_pictures(sizes)


HYBRID: tuple[type[Adapter], ...] = (Qwen35Adapter, Lfm2VlAdapter, MiniCpmV46Adapter, NemotronOmniAdapter)
