"""Tiny random-weight models of the families in `vtc.models.listed_more`, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from tests.listed_parts import (
    BOTH,
    BRACKETS,
    GLM_IDS,
    GLM_TEXT,
    GLM_VISION,
    IDS,
    INDEX,
    LLAMA,
    MISTRAL,
    MOE,
    MROPE,
    QWEN2,
    SIGLIP,
    Images,
    clips,
    config_of,
    packed,
    tiles,
)
from tests.tiny_parts import CLIPS, END, GRIDS, IMAGE, QWEN_VISION, START, TEXT, VIDEO, VISION, Family, noise, square

QWEN3_VISION = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "deepstack_visual_indexes": [0, 1]}
QWEN3_VISION |= {**QWEN_VISION, "num_position_embeddings": 64}
QWEN25_VISION = {**QWEN_VISION, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
QWEN25_VISION |= {"window_size": 16, "fullatt_block_indexes": [2]}
HEARING = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "output_dim": 32}
OMNI_IDS = {"audio_token_id": 8, "audio_start_token_id": 9, "audio_end_token_id": 6, "user_token_id": 7, **BRACKETS}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
LATENT |= {"num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "n_routed_experts": 4}
SAM = {"hidden_size": 24, "output_channels": 8, "num_hidden_layers": 3, "num_attention_heads": 3, "mlp_dim": 32}
SAM |= {"window_size": 4, "global_attn_indexes": [2], "initializer_range": 0.02}


def _timed(videos: Images) -> Images:
    """Omni's name for how long a frame lasts."""

    def made(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        inputs, prompts = videos(seeds)
        return {**inputs, "video_second_per_grid": torch.tensor([1.0 + s for s in seeds])}, prompts

    return made


def _films(patch: tuple[int, ...]) -> Images:
    """Videos whose frames become one."""

    def videos(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        grids = [CLIPS[s % len(CLIPS)] for s in seeds]
        pixels = [noise(100 + s, t * h * w, *patch) for s, (t, h, w) in zip(seeds, grids, strict=True)]
        prompts = [[START, *[VIDEO] * (h * w // 4), END] for _, h, w in grids]
        return {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}, prompts

    return videos


def _lines(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Pictures with a token before them, one at the end of each row, and one behind them."""
    if not seeds:
        return {}, []
    grids = [GRIDS[s % len(GRIDS)] for s in seeds]
    patches = torch.cat([noise(s, t * h * w, 48) for s, (t, h, w) in zip(seeds, grids, strict=True)])
    prompts = [[START, *[IMAGE] * (h // 2 * (w // 2 + 1) + 2), END] for _, h, w in grids]
    return {"pixel_values": patches, "image_grid_thw": torch.tensor(grids)}, prompts


def _pages(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """A view of 144 queries a page, before it one of a part of every other page, and a token behind it."""
    if not seeds:
        return {}, []
    counts = [s % 2 for s in seeds]
    inputs = {"pixel_values": torch.stack([noise(s, 3, 768, 768) for s in seeds])}
    if any(counts):
        parts = [noise(50 + s, n, 3, 768, 768) for s, n in zip(seeds, counts, strict=True)]
        inputs |= {"pixel_values_local": torch.cat(parts), "num_local_patches": torch.tensor(counts)}
    return inputs, [[START, *[IMAGE] * (144 * n + 145), END] for n in counts]


def _twice(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Each picture in two sizes."""
    if not seeds:
        return {}, []
    small, large = (torch.stack([noise(s, 3, size, size) for s in seeds]) for size in (24, 64))
    return {"pixel_values": small, "high_res_pixel_values": large}, [[IMAGE] * 36 for _ in seeds]


def _marked(ids: Tensor) -> dict[str, Tensor]:
    """Which tiles of a row there are: each begins with START."""
    counts = (ids == START).sum(dim=1)
    return {"pixel_attention_mask": torch.arange(int(counts.max()))[None] < counts[:, None]} if counts.any() else {}


def _omni(family: str, vision: dict[str, Any], text: dict[str, Any], **hearing: int) -> Family:
    parts = {"vision_config": vision, "text_config": {**TEXT, "rope_parameters": MROPE, **text}}
    ids = {"image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": 8}
    ids = {**(ids if family.startswith("qwen2") else BOTH), **OMNI_IDS, "seconds_per_chunk": 2}
    config = config_of(family, **parts, audio_config={**HEARING, **hearing}, **ids)
    return Family(config, packed(96), _timed(clips(96)), rows=True)


_MADE: dict[str, Callable[[], Family]] = {
    "cosmos3_omni": lambda: Family(
        config_of(
            "cosmos3_omni",
            vision_config={"model_type": "qwen3_vl_vision", **QWEN3_VISION},
            text_config={"model_type": "qwen3_vl_text", **TEXT, "head_dim": 8, "rope_parameters": MROPE},
            **BOTH,
            **BRACKETS,
        ),
        packed(96),
        clips(96, apart=True),
        typed=True,
    ),
    "cosmos3_edge": lambda: Family(
        config_of(
            "cosmos3_edge",
            vision_config={**VISION, "num_patches": 36, "num_attention_heads": 3},
            text_config={**TEXT, "head_dim": 8, "rope_parameters": {**MROPE, "mrope_section": [2, 1, 1]}},
            projector_hidden_size=48,
            **BOTH,
            **BRACKETS,
        ),
        packed(48),
        clips(48, apart=True),
        typed=True,
    ),
    "glmga": lambda: Family(
        config_of(
            "glmga",
            vision_config={"model_type": "glm4v_vision", **GLM_VISION},
            text_config={"model_type": "glm4v_text", **GLM_TEXT},
            **GLM_IDS,
        ),
        packed(96),
        clips(96, IMAGE, apart=True),
        typed=True,
        video=IMAGE,
    ),
    "pp_chart2table": lambda: Family(
        config_of(
            "pp_chart2table", vision_config={**SAM, "image_size": 64, "patch_size": 4}, text_config=QWEN2, **INDEX
        ),
        tiles(64, 16),
    ),
    "hyperclovax_vision_v2": lambda: Family(
        config_of(
            "hyperclovax_vision_v2",
            vision_config={"model_type": "qwen2_5_vl_vision", **QWEN25_VISION},
            text_config={"model_type": "hyperclovax", **TEXT},
            **BOTH,
        ),
        packed(96),
        clips(96),
    ),
    "granite_docling": lambda: Family(
        config_of(
            "granite_docling",
            vision_config={
                **VISION,
                "image_size": 32,
                "scale_factor": 2,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0, 1],
                "use_fine_route": False,
            },
            text_config={"model_type": "granite_docling_text", **TEXT},
            **IDS,
        ),
        square(32, 16, [START], [END]),
        by_row=True,
        more=_marked,
    ),
    "qwen2_5_omni_thinker": lambda: _omni("qwen2_5_omni_thinker", QWEN25_VISION, {}),
    "qwen3_omni_moe_thinker": lambda: _omni(
        "qwen3_omni_moe_thinker",
        QWEN3_VISION,
        {"head_dim": 8, **MOE, "num_experts": 4},
        downsample_hidden_size=8,
    ),
    "kimi_k25": lambda: Family(
        config_of(
            "kimi_k25",
            vision_config={
                **{k: VISION[k] for k in ("num_hidden_layers", "intermediate_size", "patch_size")},
                "hidden_size": 16,
                "num_attention_heads": 2,
                "pos_emb_height": 8,
                "pos_emb_width": 8,
                "pos_emb_time": 8,
            },
            text_config={"model_type": "deepseek_v3", **TEXT, **MOE, **LATENT},
            projection_hidden_size=16,
            **BOTH,
            **BRACKETS,
        ),
        packed(3, 4, 4),
        _films((3, 4, 4)),
    ),
    "hunyuan_vl": lambda: Family(
        config_of(
            "hunyuan_vl",
            vision_config={
                **{k: VISION[k] for k in ("num_hidden_layers", "intermediate_size", "patch_size")},
                "hidden_size": 16,
                "num_attention_heads": 2,
                "out_hidden_size": 32,
                "max_image_size": 32,
                "min_image_size": 16,
            },
            text_config={**TEXT, "head_dim": 8, "rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]}},
            image_token_id=IMAGE,
            im_start_id=START,
            im_end_id=END,
            im_newline_id=6,
        ),
        _lines,
        typed=True,
    ),
    "idefics2": lambda: Family(
        config_of(
            "idefics2",
            vision_config={**VISION, "image_size": 32},
            text_config=MISTRAL,
            perceiver_config={"hidden_size": 32, "resampler_n_latents": 16, "resampler_depth": 1}
            | {"resampler_n_heads": 2, "resampler_head_dim": 8, "num_key_value_heads": 1},
            **IDS,
        ),
        square(32, 16, [START], [END]),
        by_row=True,
    ),
    "deepseek_vl_hybrid": lambda: Family(
        config_of(
            "deepseek_vl_hybrid",
            vision_config=SIGLIP,
            high_res_vision_config={"model_type": "sam_vision_model", **SAM, "image_size": 64, "patch_size": 4},
            text_config=LLAMA,
            **IDS,
        ),
        _twice,
    ),
    "deepseek_ocr2": lambda: Family(
        config_of(
            "deepseek_ocr2",
            vision_config={
                "sam_config": {**SAM, "image_size": 768, "patch_size": 64, "downsample_channels": [12, 24]},
                "encoder_config": {**QWEN2, "model_type": "deepseek_ocr2_encoder", "hidden_size": 24}
                | {"num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 1024},
            },
            text_config={**TEXT, **MOE, "n_routed_experts": 4, "n_shared_experts": 1}
            | {"mlp_layer_types": ["dense", "sparse", "sparse"], "topk_method": "greedy"},
            **IDS,
        ),
        _pages,
    ),
}
#: those that the installed transformers has
LISTED_MORE: dict[str, Family] = {name: made() for name, made in _MADE.items() if name in CONFIG_MAPPING}
