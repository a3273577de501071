"""Tiny random-weight models of the families in `vtc.models.listed_late`, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from tests.listed_parts import IDS, INDEX, SIGLIP, config_of
from tests.listed_sliding import WINDOWS
from tests.tiny_parts import END, IMAGE, START, TEXT, Family, noise

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


QFORMER = {"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 32}
QFORMER |= {"cross_attention_frequency": 1, "use_qformer_text_input": False}
MULTIPLIED = {"embedding_multiplier": 2.0, "attention_multiplier": 0.3}
MULTIPLIED |= {"residual_multiplier": 0.7, "logits_scaling": 2.0}

_MADE: dict[str, Callable[[], Family]] = {
    "granite4_vision": lambda: Family(
        config_of(
            "granite4_vision",
            vision_config={**SIGLIP, "hidden_size": 64, "num_attention_heads": 4, "image_size": 32},
            text_config={**TEXT, "num_hidden_layers": 5, **MULTIPLIED},
            qformer_config=QFORMER,
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
                **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "share_expert_dim": 12},
                **{"rope_theta": [100.0, 10000.0, 100.0], "partial_rotary_factors": [1.0, 0.5, 1.0]},
            },
            **IDS,
        ),
        _views,
    ),
}
#: those that the installed transformers has
LISTED_LATE: dict[str, Family] = {name: made() for name, made in _MADE.items() if name in CONFIG_MAPPING}
