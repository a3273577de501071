"""The configurations of published checkpoints, by what in them a wrap could stumble over: sizes as they were published
(the model cards, and transformers' own conversion scripts), flags that old files carry and new ones do not."""

from __future__ import annotations

from typing import Any

LARGE = {"image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096}
CLIP = {"model_type": "clip_vision_model", **LARGE, "num_hidden_layers": 24, "num_attention_heads": 16}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "image_size": 384,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
FIVE = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ALL = [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]
SECOND_LAST = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
LAST = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}


def text(kind: str, width: int, inner: int, layers: int, heads: int, shared: int, words: int, **more: Any) -> Any:
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": words,
        **more,
    }


def flat(width: int, inner: int, layers: int, heads: int, shared: int, words: int, **more: Any) -> Any:
    """Qwen's early files, which say what is the language model's beside everything else."""
    made = text("", width, inner, layers, heads, shared, words, **more)
    rope = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    ids = {"vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654}
    ids |= {"image_token_id": 151655, "video_token_id": 151656}
    window = {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": layers}
    return {name: value for name, value in made.items() if name != "model_type"} | rope | ids | window


def qwen2_tower(out: int) -> Any:
    sizes = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": out}
    return {**sizes, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}


def qwen25_tower(out: int, inner: int = 3420) -> Any:
    sizes = {"depth": 32, "hidden_size": 1280, "intermediate_size": inner, "num_heads": 16, "out_hidden_size": out}
    sizes |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
    return {**sizes, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}


def qwen3(tower: Any, out: int, language: Any, tied: bool) -> Any:
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    shared = {"in_channels": 3, "num_heads": 16, "num_position_embeddings": 2304, "patch_size": 16}
    shared |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": out}
    return {
        "text_config": {**language, "head_dim": 128, "rope_scaling": rope, "rope_theta": 5000000},
        "vision_config": {**shared, **tower},
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": tied,
    }


SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
INTERN = {
    "model_type": "internvl_vision",
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": True,
    "use_qk_norm": False,
    "norm_type": "layer_norm",
}
INTERN_6B = {**INTERN, "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45}
INTERN_6B |= {"num_attention_heads": 25, "attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"}
TILES = {"downsample_ratio": 0.5, "image_seq_length": 256, "image_token_id": 151671}
NEXT = {"image_grid_pinpoints": FIVE, "vision_config": CLIP, **SECOND_LAST}
ONE = {"image_grid_pinpoints": ALL, "vision_config": SIGLIP, **LAST, "vision_aspect_ratio": "anyres_max_9"}
ONE |= {"image_token_index": 151646, "video_token_index": 151647, "image_seq_length": 729}
EXPERTS = {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True}
LLAMA_7B = text("llama", 4096, 11008, 32, 32, 32, 32064)
MISTRAL_7B = text("mistral", 4096, 14336, 32, 32, 8, 32064)
QWEN2_05B = text("qwen2", 896, 4864, 24, 14, 2, 152000, sliding_window=32768, use_sliding_window=False)
SEVEN = flat(3584, 18944, 28, 28, 4, 152064)
#: name -> (model type, what its file says)
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llava-1.5-7b": (
        "llava",
        {"vision_config": CLIP, "text_config": LLAMA_7B, "image_token_index": 32000, **SECOND_LAST},
    ),
    "llava-1.5-13b": (
        "llava",
        {
            "vision_config": CLIP,
            "text_config": text("llama", 5120, 13824, 40, 40, 40, 32064),
            "image_token_index": 32000,
            **SECOND_LAST,
        },
    ),
    "llava-llama-3-8b": (
        "llava",
        {
            "vision_config": CLIP,
            "text_config": text("llama", 4096, 14336, 32, 32, 8, 128320, rope_theta=5e5),
            "image_token_index": 128257,
            **SECOND_LAST,
        },
    ),
    "bakLlava": (  # a window of 4096 tokens, as Mistral's first
        "llava",
        {
            "vision_config": CLIP,
            "text_config": {**MISTRAL_7B, "sliding_window": 4096},
            "image_token_index": 32000,
            **SECOND_LAST,
        },
    ),
    "llava-interleave-0.5b": (
        "llava",
        {
            "vision_config": SIGLIP,
            "text_config": text(
                "qwen2", 1024, 2816, 24, 16, 16, 152000, sliding_window=32768, use_sliding_window=False
            ),
            "image_token_index": 151646,
            **LAST,
        },
    ),
    "pixtral-12b": (
        "llava",
        {
            "vision_config": {"model_type": "pixtral", "head_dim": 64, "image_size": 1024, "patch_size": 16},
            "text_config": text("mistral", 5120, 14336, 40, 32, 8, 131072, head_dim=128, sliding_window=None),
            "image_token_index": 10,
            **LAST,
        },
    ),
    "llava-1.6-vicuna-7b": ("llava_next", {**NEXT, "text_config": LLAMA_7B, "image_token_index": 32000}),
    "llava-1.6-mistral-7b": (
        "llava_next",
        {**NEXT, "text_config": {**MISTRAL_7B, "sliding_window": None}, "image_token_index": 32000},
    ),
    "llava-1.6-34b": (
        "llava_next",
        {**NEXT, "text_config": text("llama", 7168, 20480, 60, 56, 8, 64064), "image_token_index": 64000},
    ),
    "llava-next-video-7b": (  # the image's id above the video's; a linear rope
        "llava_next_video",
        {
            **NEXT,
            "text_config": {**LLAMA_7B, "rope_scaling": {"factor": 2.5, "rope_type": "linear", "type": "linear"}},
            "image_token_index": 32001,
            "video_token_index": 32000,
            "spatial_pool_stride": 2,
        },
    ),
    "llava-onevision-0.5b": ("llava_onevision", {**ONE, "text_config": {**QWEN2_05B, "tie_word_embeddings": True}}),
    "llava-onevision-7b": (
        "llava_onevision",
        {**ONE, "text_config": text("qwen2", 3584, 18944, 28, 28, 4, 152128, use_sliding_window=False)},
    ),
    "qwen2-vl-2b": (
        "qwen2_vl",
        {**flat(1536, 8960, 28, 12, 2, 151936), "vision_config": qwen2_tower(1536), "tie_word_embeddings": True},
    ),
    "qwen2-vl-7b": ("qwen2_vl", {**SEVEN, "vision_config": qwen2_tower(3584)}),
    "qwen2.5-vl-3b": (
        "qwen2_5_vl",
        {**flat(2048, 11008, 36, 16, 2, 151936), "vision_config": qwen25_tower(2048), "tie_word_embeddings": True},
    ),
    "qwen2.5-vl-7b": ("qwen2_5_vl", {**SEVEN, "vision_config": qwen25_tower(3584)}),
    "qwen2.5-vl-7b, saved again": (  # by a later transformers: the language model twice
        "qwen2_5_vl",
        {
            **SEVEN,
            "vision_config": qwen25_tower(3584),
            "text_config": {
                **text("qwen2_5_vl_text", 3584, 18944, 28, 28, 4, 152064, rope_theta=1e6),
                "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
                "layer_types": ["full_attention"] * 28,
            },
        },
    ),
    "qwen2.5-vl-72b": (
        "qwen2_5_vl",
        {**flat(8192, 29568, 80, 64, 8, 152064), "vision_config": qwen25_tower(8192, 3456)},
    ),
    "qwen3-vl-2b": (
        "qwen3_vl",
        qwen3(SMALL_TOWER, 2048, text("qwen3_vl_text", 2048, 6144, 28, 16, 8, 151936), True),
    ),
    "qwen3-vl-8b": (
        "qwen3_vl",
        qwen3(LARGE_TOWER, 4096, text("qwen3_vl_text", 4096, 12288, 36, 32, 8, 151936), False),
    ),
    "qwen3-vl-30b-a3b": (
        "qwen3_vl_moe",
        qwen3(LARGE_TOWER, 2048, text("qwen3_vl_moe_text", 2048, 6144, 48, 32, 4, 151936, **EXPERTS), False),
    ),
    "internvl3-1b": (  # a dynamic rope
        "internvl",
        {
            **TILES,
            "vision_config": INTERN,
            "text_config": {
                **text("qwen2", 896, 4864, 24, 14, 2, 151674, rope_theta=1e6, use_sliding_window=False),
                "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            },
        },
    ),
    "internvl3.5-8b": (
        "internvl",
        {**TILES, "vision_config": INTERN, "text_config": text("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128)},
    ),
    "internvl3.5-38b": (
        "internvl",
        {
            **TILES,
            "vision_config": INTERN_6B,
            "text_config": text("qwen3", 5120, 25600, 64, 64, 8, 151936, head_dim=128),
        },
    ),
    "internvl3.5-30b-a3b": (
        "internvl",
        {
            **TILES,
            "vision_config": INTERN,
            "text_config": text("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, **EXPERTS),
        },
    ),
}
