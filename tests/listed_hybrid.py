"""Tiny random-weight models whose decoders have recurrent layers; see `tests.listed`, which lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig

from tests.listed_parts import BOTH, BRACKETS, config_of, packed
from tests.tiny_parts import (
    CLIPS,
    END,
    GRIDS,
    IMAGE,
    QWEN_VISION,
    START,
    TEXT,
    VIDEO,
    VISION,
    Family,
    noise,
)

Made = tuple[dict[str, Tensor], list[list[int]]]
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}
#: two layers that attend, with and without recurrent ones before and behind them
LAYERS = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
MIXERS = ["linear_attention", "full_attention", "moe", "full_attention", "linear_attention", "mlp"]
CONVOLVED = ["conv", "full_attention", "full_attention", "conv"]


def _qwen(model_type: str, **text: Any) -> Callable[[], Any]:
    vision = {**QWEN_VISION, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
    words = {**TEXT, **DELTA, "num_hidden_layers": 4, "layer_types": LAYERS, "head_dim": 8, "rope_parameters": ROPE}
    return config_of(
        model_type,
        vision_config={**vision, "num_position_embeddings": 64},
        text_config={**words, **text},
        **BOTH,
        **BRACKETS,
    )


def _clips(seeds: Sequence[int]) -> Made:
    """Videos, each frame in brackets behind the time at which it is shown."""
    grids = [CLIPS[s % len(CLIPS)] for s in seeds]
    pixels = torch.cat([noise(100 + s, t * h * w, 96) for s, (t, h, w) in zip(seeds, grids, strict=True)])
    prompts = [[x for i in range(t) for x in (40 + i, START, *[VIDEO] * (h * w // 4), END)] for t, h, w in grids]
    return {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor(grids)}, prompts


SLICE, SLICED = 6, 7  # around a slice of a frame
SHAPES = [(8, 8), (10, 12), (8, 12), (12, 6)]  # patches, 2 x 2 of which make a token


def _padded(seeds: Sequence[int]) -> Made:
    """Patches of pictures of any size, padded to 144."""
    if not seeds:
        return {}, []
    shapes = [SHAPES[s % len(SHAPES)] for s in seeds]
    pixels, mask = torch.zeros(len(seeds), 144, 48), torch.zeros(len(seeds), 144, dtype=torch.long)
    for i, (seed, (h, w)) in enumerate(zip(seeds, shapes, strict=True)):
        pixels[i, : h * w], mask[i, : h * w] = noise(seed, h * w, 48), 1
    prompts = [[START, *[IMAGE] * (h * w // 4), END] for h, w in shapes]
    given = {"pixel_values": pixels, "spatial_shapes": torch.tensor(shapes), "pixel_attention_mask": mask}
    return given, prompts


def _sliced(seeds: Sequence[int]) -> Made:
    """Patches of pictures of any size, 2 x 2 of which make a token, side by side in one picture of a patch's height."""
    if not seeds:
        return {}, []
    sizes = [GRIDS[s % len(GRIDS)][1:] for s in seeds]
    pixels = [noise(s, 1, 3, 4, 4 * h * w) for s, (h, w) in zip(seeds, sizes, strict=True)]
    prompts = [[START, *[IMAGE] * (h * w // 4), END] for h, w in sizes]
    given = {"pixel_values": torch.cat(pixels, dim=-1), "target_sizes": torch.tensor(sizes)}
    return given, prompts


def _frames(seeds: Sequence[int]) -> Made:
    """Videos of frames that follow each other without a word; of odd ones each frame has two smaller slices."""
    clips = [CLIPS[s % len(CLIPS)] for s in seeds]
    pixels, sizes, prompts = [], [], []
    for seed, (t, h, w) in zip(seeds, clips, strict=True):
        units = [(START, END, h, w), *[(SLICE, SLICED, 4, 2)] * (2 * (seed % 2))] * t
        pixels += [noise(100 + 10 * seed + i, 1, 3, 4, 4 * h * w) for i, (_, _, h, w) in enumerate(units)]
        sizes += [(h, w) for _, _, h, w in units]
        prompts.append([x for opens, shuts, h, w in units for x in (opens, *[VIDEO] * (h * w // 4), shuts)])
    return {"pixel_values_videos": torch.cat(pixels, dim=-1), "target_sizes_videos": torch.tensor(sizes)}, prompts


def _minicpm() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
    words = {**TEXT, **DELTA, "num_hidden_layers": 4, "layer_types": LAYERS, "head_dim": 8, "rope_parameters": rope}
    return AutoConfig.for_model(
        "minicpmv4_6",
        vision_config={**VISION, "image_size": 24, "insert_layer_id": 1},
        text_config={"model_type": "qwen3_5_text", **words},
        insert_layer_id=1,
        downsample_mode="4x",
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def _nemotron() -> Any:
    text = {name: value for name, value in TEXT.items() if name != "num_hidden_layers"}
    state = {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 16}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return AutoConfig.for_model(
        "nemotron_h_omni",
        vision_config={
            "model_type": "radio",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "mlp_ratio": 2.0,
            "patch_size": 4,
            "image_size": 32,
            "max_img_size": 64,
            "num_cls_tokens": 2,
            "num_registers": 1,
            "video_temporal_patch_size": 2,
        },
        text_config={
            "model_type": "nemotron_h",
            **text,
            **state,
            **experts,
            "moe_shared_expert_intermediate_size": 24,
            "head_dim": 8,
            "layers_block_type": MIXERS,
        },
        vision_hidden_size=24,
        projector_hidden_size=24,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def _packed_hw(seeds: Sequence[int]) -> Made:
    """The same, without a time."""
    if not seeds:
        return {}, []
    grids = [GRIDS[s % len(GRIDS)][1:] for s in seeds]
    patches = torch.cat([noise(s, h * w, 48) for s, (h, w) in zip(seeds, grids, strict=True)])
    prompts = [[START, *[IMAGE] * (h * w // 4), END] for h, w in grids]
    return {"pixel_values": patches, "image_grid_hw": torch.tensor(grids)}, prompts


def _tubelets(seeds: Sequence[int]) -> Made:
    """Videos of three pairs of frames, 8 tokens each, behind the time at which they are shown; all of one size."""
    pixels = torch.stack([noise(100 + s, 3, 6, 16, 32) for s in seeds])
    return {"pixel_values_videos": pixels}, [
        [x for i in range(3) for x in (40 + i, START, *[IMAGE] * 8, END)] for _ in seeds
    ]


_MADE: dict[str, Callable[[], Family]] = {
    "nemotron_h_omni": lambda: Family(_nemotron, _packed_hw, _tubelets, video=IMAGE),
    "minicpmv4_6": lambda: Family(_minicpm, _sliced, _frames),
    "qwen3_5": lambda: Family(_qwen("qwen3_5"), packed(96), _clips, typed=True),
    "qwen3_5_moe": lambda: Family(
        _qwen(
            "qwen3_5_moe",
            moe_intermediate_size=16,
            shared_expert_intermediate_size=24,
            num_experts_per_tok=2,
            num_experts=4,
        ),
        packed(96),
        _clips,
        typed=True,
    ),
    "lfm2_vl": lambda: Family(
        lambda: AutoConfig.for_model(
            "lfm2_vl",
            vision_config={
                "model_type": "siglip2_vision_model",
                **{name: value for name, value in VISION.items() if name != "image_size"},
                "num_patches": 64,
                "vision_use_head": False,
            },
            text_config={
                "model_type": "lfm2",
                **TEXT,
                "num_hidden_layers": 4,
                "layer_types": CONVOLVED,
                "block_auto_adjust_ff_dim": False,
            },
            image_token_id=IMAGE,
            projector_hidden_size=24,
        ),
        _padded,
    ),
}
#: those that the installed transformers has
HYBRID: dict[str, Family] = {name: made() for name, made in _MADE.items() if name in CONFIG_MAPPING}
