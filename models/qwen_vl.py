"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures and videos of any size, whose towers merge 2 x 2 patches per token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import Tile
from vtc.models.family import GRIDS, Adapter, Companions, ImageLayout, Known


class QwenVLAdapter(Adapter):
    model_types = ("qwen2_vl", "qwen2_5_vl")
    mrope = True

    def tower(self, model: nn.Module) -> Any:
        return self.base(model).visual

    def prompt_positions(
        self, model: nn.Module, ids: Tensor, types: Tensor, mask: Tensor, grids: dict[str, Tensor], seconds: Any
    ) -> Tensor:
        timed = {} if seconds is None else {"second_per_grid_ts": seconds}
        given = {GRIDS[modality]: grid for modality, grid in grids.items()}
        return self.base(model).get_rope_index(
            ids, mm_token_type_ids=types, attention_mask=mask.long(), **given, **timed
        )[0]

    def layout(self, model: nn.Module, features: Tensor, known: Known) -> ImageLayout:
        if known.thw is None:
            raise ValueError(f"{known.modality}_grid_thw is missing: pass it as the processor returned it.")
        merge = self.tower(model).spatial_merge_size
        t, h, w = known.thw
        h, w = h // merge, w // merge
        if t * h * w != features.shape[0]:
            raise ValueError(
                f"{known.modality} of grid {(t, h, w)} has {t * h * w} tokens, but {features.shape[0]} were found."
            )
        index = torch.arange(t * h * w)
        tile = Tile(0, t, h, w, role="image" if known.modality == "image" else "frames")
        return ImageLayout((t, h, w), (tile,), index, torch.zeros_like(index), index.numel())


class Qwen3VLAdapter(QwenVLAdapter):
    """DeepStack: features of some tower blocks are added to the visual tokens after the first decoder layers."""

    model_types = ("qwen3_vl",)
    companions = Companions(mask="visual_pos_masks", rows="deepstack_visual_embeds")
