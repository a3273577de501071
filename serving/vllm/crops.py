"""LLaVA-NeXT and LLaVA-OneVision in vLLM: a thumbnail and a mosaic of crops, whose rows end in a newline.

How a picture's tokens are arranged is vtc's to say (`vtc.models.llava_next`); vLLM says how many crops the tower saw.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from vtc.models.family import Adapter, ImageLayout, Known
from vtc.serving.vllm.llava import ClipModel
from vtc.serving.vllm.mixins import PrunedInfo


class CropsInfo(PrunedInfo):
    """What vLLM asks for one picture's tokens stays the whole picture's: it looks for the largest one by it."""

    def most_tokens(self) -> int:
        return self.get_max_image_tokens()


class CropsModel(ClipModel):
    """Hands over what the method makes of each picture's tokens, its newlines among them."""

    #: what vtc knows of the family
    adapter: ClassVar[Adapter]

    def _process_image_input(self, image_input: Any) -> list[Tensor]:
        pixels: Sequence[Tensor] = image_input["pixel_values"]
        with self.vtc.listening() as run:
            features: list[Tensor] = super()._process_image_input(image_input)
        sizes = image_input["image_sizes"].tolist()
        layouts = [
            self._layout(own, size, len(crops)) for own, size, crops in zip(features, sizes, pixels, strict=True)
        ]
        rooms = [
            len(crops) * layout.tower_tokens // layout.crops for crops, layout in zip(pixels, layouts, strict=True)
        ]
        return [*self.compressed(features, layouts, run, rooms=rooms)]

    def _layout(self, features: Tensor, size: list[int], there: int) -> ImageLayout:
        """How the tokens [N, D] of a picture of `size` (height, width) are arranged.

        Args:
            there: how many crops the tower was given, empty ones behind its own among them.
        """
        config: Any = self.config
        rows, columns = get_anyres_image_grid_shape(
            tuple(size), config.image_grid_pinpoints, config.vision_config.image_size
        )
        ends = (features == self.image_newline.to(features)).all(dim=-1).cpu()
        known = Known(crops=min(1 + rows * columns, there), separators=ends)
        return self.adapter.layout(self, features, known)
