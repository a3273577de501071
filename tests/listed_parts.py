"""What the tiny models of `listed.py` and its like share: configurations, and pictures of the usual kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from tests.tiny_parts import CLIPS, END, GRIDS, IMAGE, QWEN_VISION, START, TEXT, VIDEO, VISION, Images, noise

MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
CLIP = {"model_type": "clip_vision_model", **VISION, "projection_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model", **VISION}
PIXTRAL = {"model_type": "pixtral", **VISION, "image_size": 48, "head_dim": 8}
LLAMA, QWEN2 = {"model_type": "llama", **TEXT}, {"model_type": "qwen2", **TEXT}
QWEN3 = {"model_type": "qwen3", **TEXT, "head_dim": 8}
MISTRAL = {"model_type": "mistral", **TEXT, "head_dim": 8, "sliding_window": None}
INDEX, IDS = {"image_token_index": IMAGE}, {"image_token_id": IMAGE}
BOTH = {"image_token_id": IMAGE, "video_token_id": VIDEO}
BRACKETS = {"vision_start_token_id": START, "vision_end_token_id": END}
GLM_IDS = {**BOTH, "image_start_token_id": START, "image_end_token_id": END}
GLM_IDS |= {"video_start_token_id": 6, "video_end_token_id": 7}
GLM_VISION = {**QWEN_VISION, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "image_size": 48}
GLM_TEXT = {**TEXT, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}
MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
GLM_MOE = {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
ERNIE_MOE = {"moe_intermediate_size": [16, 8], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
PACKED = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}


def config_of(model_type: str, **parts: Any) -> Callable[[], Any]:
    return lambda: AutoConfig.for_model(model_type, **parts)


def tiles(pixels: int, tokens: int) -> Images:
    """One or three square tiles a picture, side by side."""

    def images(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        if not seeds:
            return {}, []
        counts = [1 if s % 2 == 0 else 3 for s in seeds]
        tiles = torch.cat([noise(s, n, 3, pixels, pixels) for s, n in zip(seeds, counts, strict=True)])
        return {"pixel_values": tiles}, [[START, *[IMAGE] * (tokens * n), END] for n in counts]

    return images


def packed(*patch: int, **more: Any) -> Images:
    """Patches of that shape, of pictures of any size, 2 x 2 of which make a token."""

    def images(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        if not seeds:
            return {}, []
        grids = [GRIDS[s % len(GRIDS)] for s in seeds]
        patches = torch.cat([noise(s, t * h * w, *patch) for s, (t, h, w) in zip(seeds, grids, strict=True)])
        prompts = [[START, *[IMAGE] * (t * h * w // 4), END] for t, h, w in grids]
        each = {name: torch.tensor([value] * len(seeds)) for name, value in more.items()}
        return {"pixel_values": patches, "image_grid_thw": torch.tensor(grids), **each}, prompts

    return images


def clips(patch: int, token: int = VIDEO, apart: bool = False, frames: int = 1, **more: Any) -> Images:
    """Videos packed as pictures are.

    Args:
        token: placeholder. apart: each frame in brackets. frames: how many of the grid's become one.
    """

    def videos(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        grids = [(t - t % frames, h, w) for t, h, w in (CLIPS[s % len(CLIPS)] for s in seeds)]
        pixels = [noise(100 + s, t * h * w, patch) for s, (t, h, w) in zip(seeds, grids, strict=True)]
        prompts = [
            [6, *[x for _ in range(t) for x in (START, *[token] * (h * w // 4), END)], 7]
            if apart
            else [START, *[token] * (t // frames * h * w // 4), END]
            for t, h, w in grids
        ]
        each = {name: torch.tensor([value] * len(seeds)) for name, value in more.items()}
        return {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids), **each}, prompts

    return videos
