"""Pixtral's tower: pictures of any size, padded to the largest, whose patches lie in one row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.default import DefaultAdapter, of_pictures


class PixtralAdapter(DefaultAdapter):
    """Mistral Small 3 and LightOnOCR on Pixtral's tower, which takes pictures of any size."""

    model_types = ("mistral3", "lighton_ocr")

    def tower_grids(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        sizes, patch = torch.as_tensor(kwargs["image_sizes"]), int(tower.patch_size)  # type: ignore[arg-type]
        return of_pictures(sizes // patch)
