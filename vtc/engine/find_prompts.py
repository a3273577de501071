"""Which tokens of a call are visual: from its ids, its token types, or the placeholder's embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.find_layout import numbered
from vtc.models.family import GRIDS, PIXELS, Adapter, FrameMarks
from vtc.transfer import download_all

#: what is looked at in main memory: a few numbers per token
READ = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "labels", *GRIDS.values())


@dataclass
class Prompt:
    """What is known of a forward's images, or of its videos, before they reach the language model.

    All tensors are in main memory.
    """

    modality: str
    visual: Tensor  # BoolTensor [B, L]
    encoded: Any = None  # the tower's output object, if it was handed in
    grid_thw: Tensor | None = None
    frames: Tensor | None = None  # see find_layout.Seen


def on_host(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """The small tensors of a call, those named in READ, in main memory.

    It is made before the vision tower starts, when there is nothing to wait for yet: behind the tower the same copy
    would stand still until the pictures are encoded.
    """
    found = {name: x for name in READ if isinstance(x := given.get(name), Tensor) and not x.is_floating_point()}
    return dict(zip(found, download_all(list(found.values())), strict=True))


def brought(given: Mapping[str, Any]) -> list[str]:
    """The modalities whose pixels, or what a tower made of them, came with a call."""
    encoded = given.get("mm_encoder_outputs") or {}
    return [m for m in PIXELS if encoded.get(m) is not None or given.get(PIXELS[m]) is not None]


def find_prompts(
    family: Adapter, model: nn.Module, given: Mapping[str, Any], host: Mapping[str, Tensor], marks: FrameMarks | None
) -> list[Prompt]:
    """What a call says of its images and videos; nothing for plain text.

    Args:
        given: the arguments of the call, by name. host: `on_host` of them. marks: see `Adapter.frame_marks`.
    """
    encoded, ids = given.get("mm_encoder_outputs") or {}, host.get("input_ids")

    def frames(modality: str, visual: Tensor) -> Tensor | None:
        if marks is not None:
            return numbered(ids, visual, marks)
        return family.frame_numbers(ids, visual) if ids is not None and modality == "video" else None

    return [
        Prompt(m, mask, encoded.get(m), host.get(GRIDS[m]), frames(m, mask))
        for m, mask in _visual_masks(family, model, given, host).items()
    ]


def _visual_masks(
    family: Adapter, model: nn.Module, given: Mapping[str, Any], host: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """BoolTensor [B, L] of each modality's tokens, in main memory; refuses what cannot be told."""
    ids, types, embeds = host.get("input_ids"), host.get("mm_token_type_ids"), given.get("inputs_embeds")
    came = brought(given)
    if ids is not None:
        return {m: ids == family.token_id(model, m) for m in came}
    if embeds is None:
        return {}  # transformers says what is missing
    if types is not None:
        types = types[:, -embeds.shape[1] :]
        return {m: types == number for number, m in enumerate(PIXELS, start=1)}
    if came:  # transformers itself looks for the placeholder's embedding
        table: Any = model.get_input_embeddings
        found = {}
        for m in came:
            placeholder = table()(torch.tensor(family.token_id(model, m), device=embeds.device))
            found[m] = (embeds == placeholder).all(dim=-1)
        return dict(zip(found, download_all(list(found.values())), strict=True))
    raise ValueError(
        "inputs_embeds came without input_ids, so vtc cannot tell which tokens are visual: pass input_ids, "
        "or mm_token_type_ids [batch, length] with 1 at image and 2 at video tokens (all 0 for plain text)."
    )
