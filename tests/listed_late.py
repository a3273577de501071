"""Tiny random-weight models of the families in `vtc.models.listed_late`, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from tests.listed_parts import IDS, INDEX, SIGLIP, config_of
from tests.listed_sliding import WINDOWS
from tests.tiny_parts import END, IMAGE, START, TEXT, VISION, Family, noise

#: heights and widths of pictures, one per seed in turn, and of what they are brought to: tiles of 32 x 32
SIZES = [(50, 40), (32, 80), (64, 64), (80, 24)]
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


def _mosaics(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """A thumbnail and tiles a picture, in a tensor padded to the most; no word between pictures."""
    from tests.families import model_of

    if not seeds:
        return {}, []
    model = model_of("granite4_vision").model
    sizes = torch.tensor([SIZES[s % len(SIZES)] for s in seeds])
    pixels = torch.zeros(len(seeds), 5, 3, 32, 32)
    for i, seed in enumerate(seeds):
        pixels[i] = noise(seed, 5, 3, 32, 32)
    inputs = {"pixel_values": pixels, "image_sizes": sizes}
    (_, features), *_ = model.get_image_features(**inputs, return_dict=True).deepstack_features
    return inputs, [[IMAGE] * len(x) for x in features]


def _views(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """A view of 16 tokens a picture, and before it none, one or two tiles of 9."""
    if not seeds:
        return {}, []
    counts = [s % 3 for s in seeds]
    inputs = {"pixel_values": torch.stack([noise(s, 3, 64, 64) for s in seeds])}
    inputs |= {"num_local_patches": torch.tensor(counts)}
    if any(counts):
        tiles = [noise(50 + s, n, 3, 48, 48) for s, n in zip(seeds, counts, strict=True)]
        inputs["pixel_values_local"] = torch.cat(tiles)
    return inputs, [[*[6, *[IMAGE] * 9, 7] * n, START, *[IMAGE] * 16, END] for n in counts]


ROW, LOW = 6, 7  # behind each row of tokens, before the small view


def _rows(count: int, width: int) -> list[int]:
    return [*[*[IMAGE] * width, ROW] * count]


def _pooled(crops: int, side: int) -> Tensor:
    """Which 2 x 2 patches of so many square views, side by side from the first on, make a token: [tokens, 4]."""
    grid = torch.arange(crops * side**2).view(crops, side, side).transpose(0, 1).reshape(side, crops * side)
    return grid.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).transpose(1, 2).flatten(0, 1).flatten(1)


def _small_and_large(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """A view of 3 x 3 tokens a picture, and one of 3 x 6 or 3 x 9 of two or three crops."""
    if not seeds:
        return {}, []
    counts, pooling, before = [2 + s % 2 for s in seeds], [], 0
    for n in counts:
        pooling += [_pooled(1, 6) + before, _pooled(n, 6) + before + 36]
        before += (n + 1) * 36
    inputs = {
        "pixel_values": torch.cat([noise(s, n + 1, 36, 48) for s, n in zip(seeds, counts, strict=True)]),
        "image_token_pooling": torch.cat(pooling),
        "image_grids": torch.tensor([[3, 3, 3, 3 * n] for n in counts]),
        "image_num_crops": torch.tensor([n + 1 for n in counts]),
    }
    return inputs, [[LOW, *_rows(3, 3), END, START, *_rows(3, 3 * n), END] for n in counts]


def _timed(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Videos of two or three frames of 3 x 3 tokens, a word before each."""
    counts = [2 + s % 2 for s in seeds]
    frames = sum(counts)
    pooling = torch.cat([_pooled(1, 6) + 36 * i for i in range(frames)])
    pixels = torch.cat([noise(100 + s, n, 36, 48) for s, n in zip(seeds, counts, strict=True)])
    inputs = {"pixel_values_videos": pixels, "video_token_pooling": pooling}
    inputs["video_grids"] = torch.tensor([[n, 3, 3] for n in counts])
    return inputs, [[x for i in range(n) for x in (40 + i, START, *[IMAGE] * 9, END)] for n in counts]


def _visual(ids: Tensor) -> dict[str, Tensor]:
    """Tokens of pictures, of the ends of their rows, and their brackets."""
    return {"mm_token_type_ids": torch.isin(ids, torch.tensor([IMAGE, START, END, ROW, LOW])).long()}


HEADS = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}
QFORMER = {"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 32}
QFORMER |= {"cross_attention_frequency": 1, "use_qformer_text_input": False}
QFORMER |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MULTIPLIED = {"embedding_multiplier": 2.0, "attention_multiplier": 0.3}
MULTIPLIED |= {"residual_multiplier": 0.7, "logits_scaling": 2.0}

_MADE: dict[str, Callable[[], Family]] = {
    "granite4_vision": lambda: Family(
        config_of(
            "granite4_vision",
            vision_config={**SIGLIP, "hidden_size": 64, "num_attention_heads": 4, "image_size": 32},
            text_config={**TEXT, "num_hidden_layers": 5, **MULTIPLIED},
            qformer_config=QFORMER,
            projector_dropout=0.0,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=PINPOINTS,
            downsample_rate="2/4",
            deepstack_layer_map=[[-1, 0], [1, 2]],
            spatial_vision_layer=-2,
            spatial_target_layers=[1, 2, 3, 4],
            **INDEX,
        ),
        _mosaics,
    ),
    "step3p7": lambda: Family(
        config_of(
            "step3p7",
            vision_config={
                **{"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 1.5},
                **{"image_size": 64, "patch_size": 4},
            },
            text_config={
                **TEXT,
                **WINDOWS,
                **{"head_dim": 8, "num_sliding_attention_heads": 6, "mlp_layer_types": ["dense", "sparse", "sparse"]},
                **{
                    "n_routed_experts": 4,
                    "num_experts_per_tok": 2,
                    "moe_intermediate_size": 16,
                    "share_expert_dim": 12,
                },
                **{"rope_theta": [100.0, 10000.0, 100.0], "partial_rotary_factors": [1.0, 0.5, 1.0]},
            },
            **IDS,
        ),
        _views,
    ),
    "molmo2": lambda: Family(
        config_of(
            "molmo2",
            vision_config={**VISION, **HEADS, "image_size": [24, 24]},
            adapter_config={
                **HEADS,
                **{"hidden_size": 24, "intermediate_size": 32, "text_hidden_size": 32, "vision_feature_layer": [-1, 0]},
            },
            text_config={
                **TEXT,
                **{"head_dim": 8, "additional_vocab_size": 0, "rope_scaling_layers": [0, 2]},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            },
            image_patch_id=IMAGE,
            image_start_token_id=START,
            image_end_token_id=END,
            low_res_image_start_token_id=LOW,
        ),
        _small_and_large,
        _timed,
        more=_visual,
    ),
}
#: those that the installed transformers has
LISTED_LATE: dict[str, Family] = {name: made() for name, made in _MADE.items() if name in CONFIG_MAPPING}
