"""Families whose language model attends within a window in some layers, or lets pictures and prompts see themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.default import DefaultAdapter, FramesAdapter, blind
from vtc.models.family import Adapter, Blocks, ImageLayout, Known, square_layout


class Gemma3Adapter(DefaultAdapter):
    """One square crop, averaged over squares of patches; a picture's tokens see each other, if their types say so."""

    model_types = ("gemma3",)
    masks = True

    def fold(self, model: nn.Module) -> int:
        config: Any = model.config
        side = self.side(model)
        assert side is not None
        return side // round(config.mm_tokens_per_image**0.5)

    def blocks(self, model: nn.Module, host: Mapping[str, Tensor], seen: int, length: int) -> Blocks | None:
        types = host.get("token_type_ids")
        return None if types is None else pictures(types == 1, seen, length)


class Gemma3nAdapter(DefaultAdapter):
    """A convolutional tower, whose output is a square; an embedding per layer travels with each token."""

    model_types = ("gemma3n",)
    aligned = (*DefaultAdapter.aligned, "per_layer_inputs", "per_layer_input")

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        return blind(square_layout(len(features)))


class Gemma4Adapter(FramesAdapter):
    """Pictures of any size, padded to the largest, squares of whose patches are averaged; the larger models let a
    picture see itself in layers with a window. An embedding per layer may travel with each token."""

    model_types = ("gemma4",)
    masks = True
    aligned = (*DefaultAdapter.aligned, "per_layer_inputs", "per_layer_input")

    def merge(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.vision_config.pooling_kernel_size

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        places: Tensor = kwargs["pixel_position_ids"]  # [pictures, patches, (x, y)], -1 = padding
        width, height = (places.amax(dim=1) + 1).unbind(dim=1)
        return torch.stack([torch.ones_like(height), height, width], dim=1)  # (t, h, w)

    def blocks(self, model: nn.Module, host: Mapping[str, Tensor], seen: int, length: int) -> Blocks | None:
        config: Any = model.config
        types = host.get("mm_token_type_ids")
        if types is None or config.get_text_config().use_bidirectional_attention != "vision":
            return None
        return pictures((types == 1) | (types == 2), seen, length, kinds=frozenset({"sliding_attention"}))


class PaliGemmaAdapter(DefaultAdapter):
    """One square crop, the prompt behind it: both see each other, where a training's answer or the picture comes along.

    PaliGemma 2's layers see that prefix whole, whatever their window.
    """

    model_types = ("paligemma",)
    masks = True

    def blocks(self, model: nn.Module, host: Mapping[str, Tensor], seen: int, length: int) -> Blocks | None:
        types = host.get("token_type_ids")
        return None if types is None else in_blocks(torch.where(types == 0, 0, -1), seen, length, whole=True)


class CohereVisionAdapter(DefaultAdapter):
    """Square tiles with words between them, so that each is a picture of its own here; squares of patches are folded
    into a token."""

    model_types = ("aya_vision", "cohere2_vision")

    def fold(self, model: nn.Module) -> int:
        config: Any = model.config
        return config.downsample_factor


def pictures(visual: Tensor, seen: int, length: int, **more: Any) -> Blocks | None:
    """Every run of visual tokens is a block: BoolTensor [B, T] of a conversation, as far as it is known."""
    before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    return in_blocks(torch.where(visual, (visual & ~before).cumsum(dim=1) - 1, -1), seen, length, **more)


def in_blocks(number: Tensor, seen: int, length: int, **more: Any) -> Blocks | None:
    """The blocks of the `length` tokens that follow `seen` ones: LongTensor [B, T] of a conversation as far as it is
    known; -1 = none."""
    number = torch.nn.functional.pad(number, (0, max(0, seen + length - number.shape[1])), value=-1)
    number = number[:, seen : seen + length]
    return Blocks(number, **more) if bool((number >= 0).any()) else None


SLIDING: tuple[type[Adapter], ...] = (
    Gemma3Adapter,
    Gemma3nAdapter,
    Gemma4Adapter,
    PaliGemmaAdapter,
    CohereVisionAdapter,
)
