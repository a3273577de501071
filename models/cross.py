"""Families whose visual tokens stand beside the row: some layers of the language model attend to them in a memory.

Each of these layers makes keys and values of the memory, once, and every word of the text attends to those of the
pictures that came before it. No other layer ever meets a visual token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.layout import Tile
from vtc.models.decoder import Decoder, register_decoder
from vtc.models.default import DefaultAdapter
from vtc.models.family import Held, ImageLayout, Known, Memory
from vtc.transfer import download_all


class MemoryAdapter(DefaultAdapter):
    """What is known of such a family."""

    placement = "memory"
    apart = False
    #: arguments of the language model: the memory [B * pictures * tiles, tokens, D]; what is added to the attention to
    #: its columns, [B, 1, T, M] or None
    states: ClassVar[str] = "cross_attention_states"
    bias: ClassVar[str] = "cross_attention_mask"

    def crossing(self, model: nn.Module) -> tuple[int, ...]:
        """The decoder layers (0-based) that attend to the memory."""
        raise TypeError(f"{type(self).__name__} does not define crossing().")


class MllamaAdapter(MemoryAdapter):
    """Llama 3.2 Vision: up to four square tiles a picture, each with a CLS token in front; room for all four is made
    for each of as many pictures as any row has, and what no tile fills is padding."""

    model_types = ("mllama",)

    def check(self, model: nn.Module) -> None:
        if 0 in self.crossing(model):
            raise ValueError(
                "the first decoder layer of this mllama attends to pictures, where transformers looks for the length "
                "of the conversation: the plain model goes wrong with it, too."
            )

    def crossing(self, model: nn.Module) -> tuple[int, ...]:
        config: Any = model.config
        return tuple(sorted(config.text_config.cross_attention_layers))

    def of_tile(self, model: nn.Module) -> int:
        """How many tokens a tile has, its CLS token included."""
        tower: Any = self.tower(model)
        return tower.num_patches

    def memory(self, model: nn.Module, given: Mapping[str, Any]) -> Memory | None:
        shapes, filled = given.get("aspect_ratio_ids"), given.get("aspect_ratio_mask")
        if shapes is None or filled is None:
            return None  # transformers says what is missing
        shapes, filled = download_all([shapes, filled])  # [B, pictures], [B, pictures, tiles]
        own, (rows, count, tiles) = self.of_tile(model), filled.shape
        # of a picture that is not there the processor fills the first tile all the same, and gives it no shape
        held = (filled != 0).sum(dim=2) * (shapes != 0)
        pictures = tuple(
            Held(row, number * tiles * own, int(held[row, number]) * own) for row, number in held.nonzero().tolist()
        )
        return Memory(rows, count * tiles * own, pictures, tiles * own)

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        """Tiles one after another, a CLS token before each, which is no patch. Which part of the picture a tile shows
        is not known: pictures are padded on the right and below before they are cut."""
        n, own, side = len(features), self.of_tile(model), self.side(model)
        assert side is not None
        assert own == side * side + 1
        count, index = n // own, torch.arange(n)
        role = "image" if count == 1 else "crop"
        tiles = tuple(Tile(i * own + 1, 1, side, side, role=role, box=None) for i in range(count))
        crop = torch.where(index % own == 0, -1, index // own)
        return ImageLayout((1, side, side), tiles, torch.full_like(index, -1), crop, 0, count)


@register_decoder
class MllamaDecoder(Decoder):
    """Some layers attend to the memory instead of the row."""

    model_types = ("mllama_text_model",)

    def kinds(self, config: Any) -> list[str]:
        crossing = {*config.cross_attention_layers}
        return ["cross_attention" if i in crossing else "full_attention" for i in range(config.num_hidden_layers)]


CROSS: tuple[type[MemoryAdapter], ...] = (MllamaAdapter,)
