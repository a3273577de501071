"""Tiny random-weight models of the families in `vtc.models.listed_late`, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from tests.listed_parts import INDEX, SIGLIP, config_of
from tests.tiny_parts import IMAGE, TEXT, Family, noise

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
}
#: those that the installed transformers has
LISTED_LATE: dict[str, Family] = {name: made() for name, made in _MADE.items() if name in CONFIG_MAPPING}
