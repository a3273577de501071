"""The default family: parts found by transformers' own conventions, the facts of tower and decoder by their own types.

A family that it carries is listed in `listed.py` with what is its own; a model of no listed family is tried with
`family="auto"` (`AutoAdapter`), and proven by `vtc.check`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.layout import Tile
from vtc.models.decoder import decoder_for
from vtc.models.family import Adapter, ImageLayout, Known, square_layout
from vtc.models.tower import tower_for

#: what transformers calls a model's vision tower and its language model, the likelier names first
TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower", "vqmodel")
LANGUAGE_MODELS = ("language_model", "text_model", "decoder")


def part_named(model: nn.Module, names: tuple[str, ...]) -> Any:
    """The first part of the model that there is of these names, None if there is none."""
    return next((found for name in names if isinstance(found := getattr(model, name, None), nn.Module)), None)


class DefaultAdapter(Adapter):
    """Where things are in most models.

    Tokens lie on the picture's own patch grid where the tower is given one; else they are a square, where as many
    patches a side as make one token divide the tower's square; else a row, whose grid nobody knows: methods that work
    on the grid, and those that read the tower, refuse that one before the language model runs.
    """

    #: how many frames of a video's grid become one
    temporal_merge: ClassVar[int] = 1

    def tower(self, model: nn.Module) -> Any:
        return part_named(self.base(model), TOWERS)

    def language_model(self, model: nn.Module) -> Any:
        return part_named(self.base(model), LANGUAGE_MODELS)

    def prompt_positions(
        self, model: nn.Module, ids: Tensor, types: Tensor, mask: Tensor, grids: dict[str, Tensor], seconds: Any
    ) -> Tensor:
        given = {f"{modality}_grid_thw": grid for modality, grid in grids.items()}
        return self.base(model).get_rope_index(ids, mm_token_type_ids=types, attention_mask=mask.long(), **given)[0]

    def side(self, model: nn.Module) -> int | None:
        """Patches along a side of the square that the tower takes; None where it takes no square, or does not say."""
        config: Any = getattr(model.config, "vision_config", None)
        sizes = [getattr(config, name, None) for name in ("image_size", "patch_size")]
        height, patch = (x[0] if isinstance(x, list | tuple) and len({*x}) == 1 else x for x in sizes)
        return height // patch if isinstance(height, int) and isinstance(patch, int) else None

    def merge(self, model: nn.Module) -> int:
        """How many patches a side become one token, of pictures with a grid of their own."""
        for place in (self.tower(model), model.config, getattr(model.config, "vision_config", None)):
            if isinstance(found := getattr(place, "spatial_merge_size", None), int):
                return found
        return 1

    def crop_tokens(self, model: nn.Module) -> int | None:
        """How many tokens a crop has, of families whose pictures are several crops in an unbroken row."""
        side = self.side(model)
        return None if side is None else (side // self.fold(model)) ** 2

    def one_patch_each(self, model: nn.Module, span: Any) -> bool:
        side = self.side(model)
        return bool(side) and len(span.tiles) == 1 and side**2 == span.tokens

    def tokens_from_patches(self, model: nn.Module, values: Tensor, mean: bool) -> Tensor:
        return values.flatten(0, 1) if self.fold(model) == 1 else folded(values, self.fold(model), mean)

    def merged(self, model: nn.Module, values: Tensor, grid_thw: Tensor | None, mean: bool) -> Tensor:
        if grid_thw is None or tower_for(self.tower(model)).takes != "row":
            return self.tokens_from_patches(model, values, mean)
        return cells(values[0], grid_thw.tolist(), self.merge(model), mean)

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        n = len(features)
        if self.queries:
            return row_layout(n)
        if known.thw is not None:
            return self._grid(model, n, known)
        side, each = self.side(model), self.crop_tokens(model) if self.joins_pieces else n
        if not side or not each or n % each:
            return row_layout(n)
        short = round(each**0.5)
        if short**2 != each or side % short:
            return row_layout(n)
        aligned = self._aligned(model, side, short)
        if n == each and known.modality == "image":
            return square_layout(n) if aligned else blind(square_layout(n))
        found = crops_layout(n // each, short, known.modality)
        return found if aligned else blind(found)

    def _aligned(self, model: nn.Module, side: int, short: int) -> bool:
        """Whether `tokens_from_patches` leaves values for a square of `short` x `short` tokens."""
        return side == short * self.fold(model)

    def _grid(self, model: nn.Module, n: int, known: Known) -> ImageLayout:
        assert known.thw is not None
        t, h, w = known.thw
        merge = self.merge(model)
        h, w = h // merge, w // merge
        t = t // self.temporal_merge if known.modality == "video" else t
        if t * h * w != n:
            raise ValueError(f"{known.modality} of grid {(t, h, w)} has {t * h * w} tokens, but {n} were found.")
        index = torch.arange(n)
        tile = Tile(0, t, h, w, role="image" if known.modality == "image" else "frames")
        return ImageLayout((t, h, w), (tile,), index, torch.zeros_like(index), n)


class FramesAdapter(DefaultAdapter):
    """The default family, of which the tower is given the frames of videos one by one, each with a grid of its own."""

    frames_alone = True

    def picture_grids(self, model: nn.Module, grids: list[list[int]], sizes: list[int], modality: str) -> list[Any]:
        """Frames (1, h, w), one after another, as many to each video as have its tokens."""
        if modality == "image" or any(t > 1 for t, _, _ in grids):
            return grids
        own = shared(grids, [tokens * self.merge(model) ** 2 for tokens in sizes])
        return [(len(frames), *frames[0][1:]) for frames in own]

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        made = super().layout(model, features, known)
        if known.modality == "image":
            return made
        t, h, w = made.grid
        return replace(made, crop=torch.arange(len(features)) // (h * w), crops=t)


def shared(grids: list[list[int]], sizes: list[int]) -> list[list[list[int]]]:
    """Grids of pictures (1, h, w), in order, as many to each of `sizes` as have so many patches; [] if they do not fit.

    Example: 2 x 3, 2 x 3, 4 x 2 to 12 and 8 patches: two and one.
    """
    found: list[list[list[int]]] = []
    left = iter(grids)
    for patches in sizes:
        own: list[list[int]] = []
        while patches > 0 and (grid := next(left, None)) is not None:
            own.append(grid)
            patches -= grid[1] * grid[2]
        if patches or not own:
            return []
        found.append(own)
    return found if next(left, None) is None else []


def row_layout(n: int) -> ImageLayout:
    """Tokens of which nobody knows where in the picture, or from which patches, they are."""
    nowhere = torch.full((n,), -1)
    tile = Tile(0, 1, 1, n, role="row", box=None)
    return ImageLayout((1, 1, n), (tile,), nowhere, torch.zeros(n, dtype=torch.long), 0)


def blind(layout: ImageLayout) -> ImageLayout:
    """The same tokens, of which it is not known which patches they are made of."""
    return ImageLayout(
        layout.grid, layout.tiles, torch.full_like(layout.patch, -1), layout.crop, layout.tower_tokens, layout.crops
    )


def crops_layout(crops: int, side: int, modality: str) -> ImageLayout:
    """Square crops of side x side tokens, one after another: frames of a video, or parts of a picture (nobody says
    which)."""
    each, index = side * side, torch.arange(crops * side * side)
    tiles = tuple(Tile(i * each, 1, side, side, role="crop", box=None) for i in range(crops))
    if modality == "video":
        tiles = (Tile(0, crops, side, side, role="frames"),)
    t = crops if modality == "video" else 1
    return ImageLayout((t, side, side), tiles, index, index // each, len(index), crops)


def folded(values: Tensor, fold: int, mean: bool) -> Tensor:
    """Values of square crops of patches [B, T, ...] -> of tokens of fold x fold patches each, [N, ...]."""
    side = round(values.shape[1] ** 0.5) // fold
    square = values.unflatten(1, (side, fold, side, fold))  # [B, h, f, w, f, ...]
    return (square.mean(dim=(2, 4)) if mean else square.sum(dim=(2, 4))).flatten(0, 2)


def of_pictures(sizes: Any) -> Tensor:
    """Grids [pictures, (t, h, w)] of single pictures, from their (h, w)."""
    return torch.nn.functional.pad(torch.as_tensor(sizes), (1, 0), value=1)


def cells(values: Tensor, grids: list[list[int]], merge: int, mean: bool) -> Tensor:
    """Values of packed patches [T, ...], picture after picture -> of tokens of merge x merge patches, [N, ...]."""
    parts = values.split([t * h * w for t, h, w in grids])
    found = []
    for part, (t, h, w) in zip(parts, grids, strict=True):
        part = part.unflatten(0, (t, h, w))[:, : h // merge * merge, : w // merge * merge]
        square = part.unflatten(2, (-1, merge)).unflatten(1, (-1, merge))  # [t, h, m, w, m, ...]
        found.append((square.mean(dim=(2, 4)) if mean else square.sum(dim=(2, 4))).flatten(0, 2))
    return torch.cat(found)


class AutoAdapter(DefaultAdapter):
    """The default family as far as a model of no listed family lets itself be read; made for one model.

    Raises:
        ValueError: in one sentence, if a part cannot be found, or is of a kind that cannot work.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        name = f"{type(model).__name__} ({config.model_type!r})"
        self.model_types = (config.model_type,)  # type: ignore[misc]
        self._entry = model
        base = self.base(model)
        for what, found in (
            ("its vision tower", self.tower(model)),
            ("its language model", self.language_model(model)),
            ("get_image_features()", getattr(base, "get_image_features", None)),
            ("config.image_token_id", getattr(config, "image_token_id", None)),
        ):
            if found is None:
                raise ValueError(f'{name} does not fit family="auto": {what} is not where other models have it.')
        lm = self.language_model(model)
        try:
            layers, rotary = len(decoder_for(lm).layers(lm)), decoder_for(lm).rotary(lm)
        except AttributeError as error:
            raise ValueError(f'{name} does not fit family="auto": its language model has {error}.') from error
        if not layers or rotary is None:
            raise ValueError(f'{name} does not fit family="auto": its language model has no layers.')
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(f"{name} reads pictures in an encoder, beside the text: it has no visual tokens.")
        rope = getattr(lm.config, "rope_parameters", None) or {}
        self.mrope = "mrope_section" in rope and hasattr(base, "get_rope_index")  # type: ignore[misc]

    def base(self, model: nn.Module) -> Any:
        inner = getattr(model, "model", None)
        return inner if isinstance(inner, nn.Module) else model

    def fold(self, model: nn.Module) -> int:
        return 1
