"""Families whose visual tokens are completed between decoder layers, or see each other beyond a picture."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import Tile, VisualSpan
from vtc.models.decoder import Decoder, own_function, register_decoder
from vtc.models.default import DefaultAdapter, blind, folded, row_layout
from vtc.models.family import Adapter, Blocks, Companions, ImageLayout, Known
from vtc.models.llava_next import LlavaNextAdapter
from vtc.models.sliding import in_blocks
from vtc.models.text_models import Gemma3Decoder


class Granite4VisionAdapter(LlavaNextAdapter):
    """LLaVA-NeXT's pictures, of whose patches windows become fewer tokens. A token enters empty: what several tower
    blocks make of its place is added to it before some of the decoder layers."""

    model_types = ("granite4_vision",)
    companions = Companions(mask="vision_mask", rows="deepstack_features", before=True)
    mixes = ("image",)
    projects_cls = False
    rebuilds = True
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
    counts_crops = False  # tiles have a run of their own

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
        return (squares(known.runs) if known.runs else None) or row_layout(len(features))


@register_decoder
class Molmo2Decoder(Decoder):
    """Norms before or behind attention and feed-forward part; some layers may rotate by unscaled positions."""

    model_types = ("molmo2_text",)

    def normed(self, layer: Any, hidden: Tensor) -> Tensor:
        return hidden if layer.norm_after else layer.input_layernorm(hidden)

    def rotaries(self, lm: Any) -> list[Any]:
        return [lm.rotary_emb, lm.rotary_emb_unscaled]

    def tables_of(self, config: Any, layer: int) -> Hashable:
        return layer in config.rope_scaling_layers

    def position_embeddings(self, rotary: Any, hidden: Tensor, positions: Tensor, layer: int) -> Any:
        if layer not in rotary.config.rope_scaling_layers:
            rotary = type(rotary)(rotary.config, scaled=False).to(hidden.device)
        return rotary(hidden, position_ids=positions)


class Molmo2Adapter(DefaultAdapter):
    """A small view of the whole picture, then a mosaic of crops, or the frames of a video: in words, a row of tokens
    each. All that is visual of a row sees itself, the words for the ends of rows and pictures included. A token is its
    placeholder's embedding and a feature."""

    model_types = ("molmo2",)
    masks = True
    apart = False
    remakes = True

    def features(self, model: nn.Module, output: Any) -> Any:
        made = super().features(model, output)
        if made is None:
            return None
        table: Any = model.get_input_embeddings
        word = table().weight[self.token_id(model, "image")]
        return [x + word.to(x) for x in made]

    def blocks(self, model: nn.Module, host: Mapping[str, Tensor], seen: int, length: int) -> Blocks | None:
        types = host.get("mm_token_type_ids")
        return None if types is None else in_blocks(torch.where(types == 1, 0, -1), seen, length, gaps=True)

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        found = None
        if known.runs:
            found = squares(known.runs, "frames") if known.modality == "video" else self._views(known.runs)
        return row_layout(len(features)) if found is None else found

    def _views(self, runs: tuple[int, ...]) -> ImageLayout | None:
        """A square, by rows or as one run, and rows of one width; None = something else."""
        first = runs[0]
        rows = first if runs[:first] == (first,) * first else 0
        side = first if rows else round(first**0.5)
        rest = runs[rows or 1 :]
        if len({*rest}) != 1 or (not rows and side**2 != first):
            return None
        height, width = len(rest), rest[0]
        small = Tile(0, 1, side, side, role="thumbnail")
        tiles = (small, Tile(side**2, 1, height, width, role="mosaic"))
        n = side**2 + height * width
        crop = (torch.arange(n) >= side**2).long()
        return ImageLayout((1, height, width), tiles, torch.full((n,), -1), crop, 0)


def squares(runs: tuple[int, ...], role: str = "crop") -> ImageLayout | None:
    """One square after another, each an unbroken run of tokens; frames are equally large. None = something else."""
    sides, n = [round(length**0.5) for length in runs], sum(runs)
    if any(side**2 != length for side, length in zip(sides, runs, strict=True)):
        return None
    crop = torch.arange(len(runs)).repeat_interleave(torch.tensor(runs))
    nowhere = torch.full((n,), -1)
    if role == "frames":
        if len({*sides}) > 1:
            return None
        grid = (len(runs), sides[0], sides[0])
        return ImageLayout(grid, (Tile(0, *grid, role=role),), nowhere, crop, 0)
    starts = [sum(runs[:i]) for i in range(len(runs))]
    known = {"role": role, "box": None} if len(runs) > 1 else {}
    tiles = tuple(Tile(start, 1, side, side, **known) for start, side in zip(starts, sides, strict=True))
    return ImageLayout((1, max(sides), max(sides)), tiles, nowhere, crop, 0)


LISTED_LATE: tuple[type[Adapter], ...] = (Granite4VisionAdapter, Step37Adapter, Molmo2Adapter)
