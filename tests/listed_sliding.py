"""Tiny random-weight models whose language models attend within a window, or let pictures see themselves.

Every window is shorter than the prompts are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from tests.listed_parts import config_of
from tests.tiny_parts import CLIPS, END, GRIDS, IMAGE, START, TEXT, VIDEO, VISION, VOCAB, Family, noise, square

SIGLIP = {"model_type": "siglip_vision_model", **VISION, "image_size": 32, "vision_use_head": False}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOWS = {"layer_types": KINDS, "sliding_window": 14}
ROTATIONS = {
    "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
IDS = {"image_token_id": IMAGE, "boi_token_id": START, "eoi_token_id": END}
COHERE = {"model_type": "cohere2", **TEXT, **WINDOWS, "head_dim": 8}


def _pictures(ids: Tensor) -> dict[str, Tensor]:
    """Which tokens see each other."""
    return {"token_type_ids": (ids == IMAGE).long()}


def _prefix(ids: Tensor) -> dict[str, Tensor]:
    """The prompt sees itself; what is given of the answer does not."""
    return {"token_type_ids": torch.zeros_like(ids)}


#: the last two layers read the keys of those two before them
SHARED = {
    **TEXT,
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
    "num_kv_shared_layers": 2,
    "sliding_window": 14,
    "head_dim": 8,
    "rope_parameters": ROTATIONS,
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": VOCAB,
}
GEMMA4_VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 128,
}


def _patches(seeds: Sequence[int], grids: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Patches [pictures, most, 48] of pictures of any size, and where they lie, [pictures, most, (x, y)]."""
    most = max(h * w for _, h, w in GRIDS)
    pixels, places = torch.zeros(len(seeds), most, 48), torch.full((len(seeds), most, 2), -1)
    for i, (seed, (h, w)) in enumerate(zip(seeds, grids, strict=True)):
        pixels[i, : h * w] = noise(seed, h * w, 48)
        places[i, : h * w] = torch.tensor([[x, y] for y in range(h) for x in range(w)])
    return pixels, places


def _any_size(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    if not seeds:
        return {}, []
    grids = [GRIDS[s % len(GRIDS)][1:] for s in seeds]
    pixels, places = _patches(seeds, grids)
    prompts = [[START, *[IMAGE] * (h * w // 4), END] for h, w in grids]
    return {"pixel_values": pixels, "image_position_ids": places}, prompts


def _clips(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Videos of any size, each frame in brackets behind the time at which it is shown."""
    clips = [CLIPS[s % len(CLIPS)] for s in seeds]
    frames = [100 + 10 * s + i for s, (t, _, _) in zip(seeds, clips, strict=True) for i in range(t)]
    pixels, places = _patches(frames, [(h, w) for t, h, w in clips for _ in range(t)])
    prompts = [[x for i in range(t) for x in (40 + i, START, *[VIDEO] * (h * w // 4), END)] for t, h, w in clips]
    counts = torch.tensor([t for t, _, _ in clips])
    return {"pixel_values_videos": pixels, "video_position_ids": places, "num_frames_per_video": counts}, prompts


def gemma4(**text: Any) -> Family:
    config = config_of(
        "gemma4",
        vision_config=GEMMA4_VISION,
        text_config={**SHARED, "global_head_dim": 16, **text},
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=START,
        eoi_token_id=END,
    )
    return Family(config, _any_size, _clips, typed=True)


_MADE: dict[str, Callable[[], Family]] = {
    "gemma3": lambda: Family(
        config_of(
            "gemma3",
            vision_config=SIGLIP,
            text_config={
                "model_type": "gemma3_text",
                **TEXT,
                **WINDOWS,
                "head_dim": 8,
                "query_pre_attn_scalar": 8,
                "rope_parameters": ROTATIONS,
            },
            mm_tokens_per_image=16,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        ),
        square(32, 16, [START], [END]),
        more=_pictures,
    ),
    "gemma4": lambda: gemma4(
        use_bidirectional_attention="vision", hidden_size_per_layer_input=0, num_kv_shared_layers=0
    ),
    "gemma3n": lambda: Family(
        config_of(
            "gemma3n",
            vision_config={
                "architecture": "test_efficientnet",
                "hidden_size": 256,
                "model_args": {},
                "do_pooling": False,
                "vocab_offset": 96,
                "vocab_size": 1,
            },
            audio_config={"vocab_offset": 97, "vocab_size": 2, "conf_num_hidden_layers": 1, "hidden_size": 16},
            text_config={**SHARED, "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 5},
            vision_soft_tokens_per_image=16,
            **IDS,
        ),
        square(128, 16, [START], [END]),
    ),
    "paligemma": lambda: Family(
        config_of(
            "paligemma",
            vision_config={**SIGLIP, "projection_dim": 32},
            text_config={"model_type": "gemma", **TEXT, "head_dim": 8},
            image_token_index=IMAGE,
            hidden_size=32,
            projection_dim=32,
        ),
        square(32, 64),
        more=_prefix,
    ),
    "aya_vision": lambda: Family(
        config_of("aya_vision", vision_config=SIGLIP, text_config=COHERE, image_token_index=IMAGE),
        square(32, 16, [START], [END]),
    ),
    "cohere2_vision": lambda: Family(
        config_of(
            "cohere2_vision",
            vision_config=SIGLIP,
            text_config=COHERE,
            image_token_id=IMAGE,
            alignment_intermediate_size=24,
        ),
        square(32, 16, [START], [END]),
    ),
}
#: those that the installed transformers has
SLIDING: dict[str, Family] = {name: made() for name, made in _MADE.items() if name in CONFIG_MAPPING}
