"""Which tokens of a call are visual: from its ids, its token types, or the placeholder's embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.find_layout import numbered
from vtc.models.family import GRIDS, PIXELS, Adapter, FrameMarks


@dataclass
class Prompt:
    """What is known of a forward's images, or of its videos, before they reach the language model."""

    modality: str
    visual: Tensor  # BoolTensor [B, L]
    encoded: Any = None  # the tower's output object, if it was handed in
    grid_thw: Tensor | None = None
    frames: Tensor | None = None  # see find_layout.Seen


def brought(given: Mapping[str, Any]) -> list[str]:
    """The modalities whose pixels, or what a tower made of them, came with a call."""
    encoded = given.get("mm_encoder_outputs") or {}
    return [m for m in PIXELS if encoded.get(m) is not None or given.get(PIXELS[m]) is not None]


def find_prompts(family: Adapter, model: nn.Module, given: Mapping[str, Any], marks: FrameMarks | None) -> list[Prompt]:
    """What a call says of its images and videos; nothing for plain text.

    Args:
        given: the arguments of the call, by name. marks: see `Adapter.frame_marks`.
    """
    encoded, ids = given.get("mm_encoder_outputs") or {}, given.get("input_ids")
    return [
        Prompt(m, mask, encoded.get(m), given.get(GRIDS[m]), numbered(ids, mask, marks) if marks else None)
        for m, mask in _visual_masks(family, model, given).items()
    ]


def _visual_masks(family: Adapter, model: nn.Module, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """BoolTensor [B, L] of each modality's tokens; refuses what cannot be told."""
    ids, embeds, types = given.get("input_ids"), given.get("inputs_embeds"), given.get("mm_token_type_ids")
    came = brought(given)
    if ids is not None:
        if not came and bool((ids == family.token_id(model, "image")).any()):
            raise ValueError(
                "the prompt has image tokens, but no pixel_values came with them: pass all that the processor "
                "returned, in one forward (generate's prefill_chunk_size is not supported on a wrapped model)."
            )
        return {m: ids == family.token_id(model, m) for m in came}
    assert embeds is not None
    if types is not None:
        types = types[:, -embeds.shape[1] :]
        return {m: types == number for number, m in enumerate(PIXELS, start=1)}
    if came:  # transformers itself looks for the placeholder's embedding
        table: Any = model.get_input_embeddings
        found = {}
        for m in came:
            placeholder = table()(torch.tensor(family.token_id(model, m), device=embeds.device))
            found[m] = (embeds == placeholder).all(dim=-1)
        return found
    raise ValueError(
        "inputs_embeds came without input_ids, so vtc cannot tell which tokens are visual: pass input_ids, "
        "or mm_token_type_ids [batch, length] with 1 at image and 2 at video tokens (all 0 for plain text)."
    )
