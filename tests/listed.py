"""Tiny random-weight models of the families that the default one carries, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from tests.listed_cross import CROSS
from tests.listed_hybrid import HYBRID
from tests.listed_late import LISTED_LATE
from tests.listed_more import LISTED_MORE
from tests.listed_parts import (
    BOTH,
    BRACKETS,
    CLIP,
    ERNIE_MOE,
    GLM_IDS,
    GLM_MOE,
    GLM_TEXT,
    GLM_VISION,
    IDS,
    INDEX,
    LLAMA,
    MISTRAL,
    MOE,
    MROPE,
    PACKED,
    PIXTRAL,
    QWEN2,
    QWEN3,
    SIGLIP,
    clips,
    config_of,
    packed,
    tiles,
)
from tests.listed_sliding import SLIDING
from tests.tiny_parts import (
    END,
    IMAGE,
    QWEN_VISION,
    START,
    TEXT,
    VIDEO,
    VISION,
    VOCAB,
    Family,
    noise,
    square,
)

FULL = {"layer_types": ["full_attention"] * 3}
INDICATORS = [90, 91, 92, 93, 94]
SIZES = [(48, 32), (40, 56), (32, 32), (24, 48)]  # pixels, in patches of 4


def _padded(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Pictures of any size, padded to the largest: a token is 2 x 2 patches."""
    if not seeds:
        return {}, []
    sizes = [SIZES[s % len(SIZES)] for s in seeds]
    pixels = torch.zeros(len(seeds), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    for i, (seed, (h, w)) in enumerate(zip(seeds, sizes, strict=True)):
        pixels[i, :, :h, :w] = noise(seed, 3, h, w)
    prompts = [[IMAGE] * ((h // 8) * (w // 8)) for h, w in sizes]
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}, prompts


def _words(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Pictures of 8 x 8 codebook entries, a word at the end of each row."""
    if not seeds:
        return {}, []
    pixels = torch.stack([noise(s, 3, 16, 16) for s in seeds])
    sizes = torch.tensor([[16, 16]] * len(seeds))
    return {"pixel_values": pixels, "image_sizes": sizes}, [[IMAGE] * 72 for _ in seeds]


def _pairs(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """A thumbnail and one tile a picture, in a tensor of their own."""
    if not seeds:
        return {}, []
    pixels = torch.stack([noise(s, 2, 3, 32, 32) for s in seeds])
    return {"pixel_values": pixels}, [[START, *[IMAGE] * 32, END] for _ in seeds]


def _frames(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Videos of three square frames of 16 tokens."""
    pixels = torch.stack([noise(100 + s, 3, 3, 32, 32) for s in seeds])
    return {"pixel_values_videos": pixels}, [[START, *[VIDEO] * 48, END] for _ in seeds]


def _with_cls(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Videos of two frames of 36 patches and a CLS token."""
    pixels = torch.stack([noise(100 + s, 2, 3, 24, 24) for s in seeds])
    return {"pixel_values_videos": pixels}, [[VIDEO] * 74 for _ in seeds]


def _glm(family: str, **text: Any) -> Family:
    named = {"model_type": "glm4v_vision"}, {"model_type": "glm4v_text"}
    vision, words = named if family == "glm46v" else ({}, {})
    parts = {"vision_config": {**vision, **GLM_VISION}, "text_config": {**words, **GLM_TEXT, **text}}
    config = config_of(family, **parts, **GLM_IDS)
    return Family(config, packed(96), clips(96, IMAGE, apart=True), typed=True, video=IMAGE)


def _moe_types(ids: Tensor) -> dict[str, Tensor]:
    """What kind of expert sees each token: pictures' own see the brackets, too."""
    return {"moe_mm_token_type_ids": ((ids >= IMAGE) & (ids <= END)).int() + 2 * (ids == VIDEO).int()}


_MADE: dict[str, Callable[[], Family]] = {
    "vipllava": lambda: Family(
        config_of("vipllava", vision_config=CLIP, text_config=LLAMA, **INDEX, vision_feature_layer=[-2, 1]),
        square(24, 36),
    ),
    "video_llava": lambda: Family(
        config_of("video_llava", vision_config=CLIP, text_config=LLAMA, **INDEX, video_token_index=VIDEO),
        square(24, 36),
        _with_cls,
    ),
    "mistral3": lambda: Family(config_of("mistral3", vision_config=PIXTRAL, text_config=MISTRAL, **INDEX), _padded),
    "lighton_ocr": lambda: Family(config_of("lighton_ocr", vision_config=PIXTRAL, text_config=QWEN3, **IDS), _padded),
    "glm4v": lambda: _glm("glm4v"),
    "glm46v": lambda: _glm("glm46v"),
    "glm_ocr": lambda: _glm("glm_ocr", head_dim=8),
    "glm4v_moe": lambda: _glm("glm4v_moe", head_dim=8, **GLM_MOE),
    "ernie4_5_vl_moe": lambda: Family(
        config_of(
            "ernie4_5_vl_moe",
            vision_config={"depth": 3, "num_heads": 2, "hidden_size": 16, "intermediate_size": 24, "patch_size": 4},
            text_config={**TEXT, "rope_parameters": MROPE, **ERNIE_MOE},
            **GLM_IDS,
        ),
        packed(48),
        clips(48, frames=2),
        typed=True,
        more=_moe_types,
    ),
    "paddleocr_vl": lambda: Family(
        config_of(
            "paddleocr_vl",
            vision_config={**PACKED, "image_size": 48},
            text_config={**TEXT, "head_dim": 8, "rope_parameters": {**MROPE, "type": "default"}},
            **BOTH,
            **BRACKETS,
        ),
        packed(3, 4, 4),
        typed=True,
    ),
    "video_llama_3": lambda: Family(
        config_of("video_llama_3", vision_config=PACKED, text_config=QWEN2, **BOTH),
        packed(48, image_merge_sizes=2),
        clips(48, video_merge_sizes=2),
    ),
    "qwen3_vl_moe": lambda: Family(
        config_of(
            "qwen3_vl_moe",
            vision_config={
                **QWEN_VISION,
                "hidden_size": 16,
                "out_hidden_size": 32,
                "intermediate_size": 24,
                "deepstack_visual_indexes": [0, 1],
                "num_position_embeddings": 64,
            },
            text_config={**TEXT, "head_dim": 8, "rope_parameters": MROPE, **MOE, "num_experts": 4},
            **BOTH,
            **BRACKETS,
        ),
        packed(96),
        clips(96, apart=True),
        typed=True,
    ),
    "ovis2": lambda: Family(
        config_of(
            "ovis2",
            vision_config={**VISION, "vocab_size": 40},
            text_config=QWEN2,
            visual_indicator_token_ids=INDICATORS,
            vocab_size=VOCAB,
            hidden_size=32,
            **IDS,
        ),
        square(24, 36, INDICATORS[:1], INDICATORS[1:2]),
    ),
    "got_ocr2": lambda: Family(
        config_of(
            "got_ocr2",
            vision_config={
                "hidden_size": 24,
                "output_channels": 8,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "image_size": 64,
                "patch_size": 4,
                "window_size": 4,
                "global_attn_indexes": [2],
                "mlp_dim": 32,
                "initializer_range": 0.02,
            },
            text_config=QWEN2,
            **INDEX,
        ),
        tiles(64, 16),
    ),
    "exaone4_5": lambda: Family(
        config_of(
            "exaone4_5",
            vision_config={
                **QWEN_VISION,
                "num_key_value_heads": 1,
                "hidden_size": 16,
                "out_hidden_size": 32,
                "intermediate_size": 24,
                "window_size": 16,
                "fullatt_block_indexes": [2],
            },
            text_config={"model_type": "exaone4", **TEXT, "sliding_window": None, "head_dim": 8, **FULL},
            **BOTH,
        ),
        packed(96),
        clips(96),
    ),
    "fast_vlm": lambda: Family(
        config_of(
            "fast_vlm",
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci3",
                "do_pooling": True,
                "global_pool": "avg",
                "hidden_size": 128,
                "model_args": {
                    "inference_mode": True,
                    "layers": (1, 1, 1, 1, 1),
                    "embed_dims": (4, 8, 16, 32, 64),
                },
            },
            text_config=QWEN2,
            **INDEX,
        ),
        square(256, 16),
    ),
    "janus": lambda: Family(
        config_of(
            "janus",
            vision_config={**VISION, "projection_dim": 32, "mlp_ratio": 2.0, "num_image_tokens": 36},
            text_config=LLAMA,
            vq_config={
                "embed_dim": 4,
                "num_embeddings": 8,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "num_patches": 4,
                "projection_dim": 8,
                "image_token_embed_dim": 32,
            },
            **IDS,
        ),
        square(24, 36),
    ),
    "deepseek_vl": lambda: Family(
        config_of("deepseek_vl", vision_config=SIGLIP, text_config=LLAMA, **IDS), square(24, 36)
    ),
    "qianfan_ocr": lambda: Family(
        config_of(
            "qianfan_ocr",
            vision_config={**VISION, "image_size": [32, 32], "patch_size": [4, 4]},
            text_config=QWEN3,
            **IDS,
        ),
        tiles(32, 16),
    ),
    "idefics3": lambda: Family(
        config_of("idefics3", vision_config={**VISION, "image_size": 32}, text_config=LLAMA, scale_factor=2, **IDS),
        square(32, 16, [START], [END]),
        by_row=True,
    ),
    "smolvlm": lambda: Family(
        config_of("smolvlm", vision_config={**VISION, "image_size": 32}, text_config=LLAMA, scale_factor=2, **IDS),
        square(32, 16, [START], [END]),
        by_row=True,
    ),
    "aria": lambda: Family(
        config_of(
            "aria",
            vision_config={"model_type": "idefics3_vision", **VISION, "image_size": 490, "patch_size": 70},
            text_config={**TEXT, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
            projector_patch_to_query_dict={49: 20},
            **INDEX,
        ),
        square(490, 20),  # its processor makes pictures of no other size, but for 980
    ),
    "emu3": lambda: Family(
        config_of(
            "emu3",
            vq_config={
                "codebook_size": 32,
                "base_channels": 32,
                "channel_multiplier": [1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [1],
                "hidden_size": 64,
            },
            text_config={**TEXT, "attention_dropout": 0.0},
            vocabulary_map={
                "<image>": IMAGE,
                "<|extra_200|>": 98,
                **{f"<|visual token {i:06d}|>": 50 + i for i in range(32)},
            },
        ),
        _words,
    ),
    "perception_lm": lambda: Family(
        config_of(
            "perception_lm",
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_large_patch14_336",
                "do_pooling": False,
                "global_pool": "",
                "hidden_size": 24,
                "model_args": {
                    "embed_dim": 24,
                    "depth": 3,
                    "num_heads": 3,
                    "mlp_ratio": 2.0,
                    "img_size": [32, 32],
                    "patch_size": 4,
                    "ref_feat_shape": [8, 8],
                    "init_values": 0.1,
                    "global_pool": "",
                    "use_post_transformer_norm": False,
                },
            },
            text_config=LLAMA,
            vision_use_cls_token=True,
            projector_pooling_ratio=2,
            **BOTH,
        ),
        _pairs,
        _frames,
    ),
}
#: those that the installed transformers has
LISTED: dict[str, Family] = {name: made() for name, made in _MADE.items() if name in CONFIG_MAPPING}
LISTED |= HYBRID | SLIDING | LISTED_MORE | LISTED_LATE | CROSS
