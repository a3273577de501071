"""Families whose visual tokens are completed between decoder layers, or see each other beyond a picture."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import Tile, VisualSpan
from vtc.models.decoder import own_function, register_decoder
from vtc.models.default import DefaultAdapter, blind, folded, row_layout
from vtc.models.family import Adapter, Companions, ImageLayout, Known
from vtc.models.llava_next import LlavaNextAdapter
from vtc.models.text_models import Gemma3Decoder


class Granite4VisionAdapter(LlavaNextAdapter):
    """LLaVA-NeXT's pictures, of whose patches windows become fewer tokens. A token enters empty: what several tower
    blocks make of its place is added to it before some of the decoder layers."""

    model_types = ("granite4_vision",)
    companions = Companions(mask="vision_mask", rows="deepstack_features", before=True)
    mixes = ("image",)
    projects_cls = False
    apart = False

    def _rate(self, model: nn.Module) -> Fraction:
        """Tokens along a side, per patch."""
        config: Any = model.config
        return Fraction(config.downsample_rate)

    def _first(self, model: nn.Module) -> int:
        """Which of the projectors makes what the first of those layers adds; of two for one layer, the later counts."""
        config: Any = model.config
        layers = [layer for _, layer in config.deepstack_layer_map] + list(config.spatial_target_layers)
        return max(i for i, layer in enumerate(layers) if layer == min(layers))

    def crop_projector(self, model: nn.Module) -> nn.Module:
        base = self.base(model)
        return [*base.layerwise_projectors, *base.spatial_projectors][self._first(model)]

    def feature_layer(self, model: nn.Module) -> int:
        """The deepest block that any of the features are made of."""
        config: Any = model.config
        read = [block for block, _ in config.deepstack_layer_map] + [config.spatial_vision_layer]
        depth = config.vision_config.num_hidden_layers
        return max(max(block % (depth + 1) for block in read) - 1, 0)

    def features(self, model: nn.Module, output: Any) -> Any:
        rows = getattr(output, "deepstack_features", None)  # the tower's own output has none
        return None if rows is None else rows[self._first(model)][1]

    def entering(self, model: nn.Module, features: Any, given: Mapping[str, Any], modality: str) -> Any:
        """Without features: as many rows as the model's own arrangement leaves of pictures of their size."""
        sizes, base = given.get("image_sizes"), self.base(model)
        if features is not None or sizes is None:
            return features
        config: Any = model.config
        count = own_function(base, "image_size_to_num_patches")
        pictures = [count(size, config.image_grid_pinpoints, config.vision_config.image_size) for size in sizes]
        empty = [torch.empty(crops, self._side(model) ** 2, 1) for crops in pictures]
        return base.pack_image_features(empty, sizes, "full", image_newline=torch.empty(1))

    def _side(self, model: nn.Module) -> int:
        return int(super()._side(model) * self._rate(model))

    def tokens_from_patches(self, model: nn.Module, values: Tensor, mean: bool) -> Tensor:
        fold = 1 / self._rate(model)
        return folded(values, int(fold), mean) if fold.denominator == 1 else values.flatten(0, 1)

    def one_patch_each(self, model: nn.Module, span: VisualSpan) -> bool:
        return False

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        made = super().layout(model, features, known)
        return made if (1 / self._rate(model)).denominator == 1 else blind(made)


@register_decoder
class Step35Decoder(Gemma3Decoder):
    """A rotation per kind of layer; layers with a window have more heads, and heads have gates behind attention."""

    model_types = ("step3p5",)


class Step37Adapter(DefaultAdapter):
    """A view of the whole picture, and tiles before it, each with a word around; two convolutions make a token of 4 x 4
    patches of any of them."""

    model_types = ("step3p7",)
    apart = False

    def fold(self, model: nn.Module) -> int:
        return 4

    def _sides(self, model: nn.Module) -> tuple[int, int]:
        """Tokens along a side of the whole view, and of a tile: published processors cut views of 728 pixels and tiles
        of 504."""
        whole = -(-(self.side(model) or 0) // 4)
        return whole, round(whole * 504 / 728)

    def entering(self, model: nn.Module, features: Any, given: Mapping[str, Any], modality: str) -> Any:
        pixels, tiles = given.get("pixel_values"), given.get("pixel_values_local")
        if features is not None or pixels is None:
            return features  # the tower hands over views and tiles apart: how many each picture has, the processor says
        config: Any = model.config
        edge = config.vision_config.patch_size * 4
        whole, tile = (0 if x is None else (-(-x.shape[-1] // edge)) ** 2 for x in (pixels, tiles))
        counts = given.get("num_local_patches")
        counts = [0] * len(pixels) if counts is None else torch.as_tensor(counts).tolist()
        return [pixels.new_empty(tile * n + whole, 0) for n in counts]

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        (whole, tile), n = self._sides(model), len(features)
        count, left = divmod(n - whole**2, tile**2)
        if left or count < 0:
            return row_layout(n)
        tiles = [Tile(i * tile**2, 1, tile, tile, role="crop", box=None) for i in range(count)]
        last = {"role": "crop", "box": None} if count else {}
        tiles.append(Tile(count * tile**2, 1, whole, whole, **last))
        each = torch.tensor([tile**2] * count + [whole**2])
        crop = torch.arange(count + 1).repeat_interleave(each)
        return ImageLayout((1, whole, whole), tuple(tiles), torch.full((n,), -1), crop, 0)  # one run sees the views


LISTED_LATE: tuple[type[Adapter], ...] = (Granite4VisionAdapter, Step37Adapter)
