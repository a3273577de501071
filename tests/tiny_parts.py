"""What the tiny models of `families.py` and `listed.py` are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAD, BOS, IMAGE, START, END, VIDEO, VOCAB = 0, 1, 2, 3, 4, 5, 99
TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    max_position_embeddings=512,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=None,
)
VISION = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=3, image_size=24, patch_size=4
)
QWEN_VISION = dict(depth=3, num_heads=2, in_channels=3, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
MROPE = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


Images = Callable[[Sequence[int]], tuple[dict[str, Tensor], list[list[int]]]]


@dataclass(frozen=True)
class Family:
    """How to build a family's tiny model and the pixels of its images.

    `images(seeds)` gives the vision inputs of a batch's images in reading order and, per image, its prompt ids;
    `videos(seeds)` the same for videos, where the family reads them. `typed`: whether its processor says of what kind
    each token is (mm_token_type_ids), and positions are (t, h, w) rows; `video`: the placeholder of a video's token;
    `more(ids)`: what else it says of each token; `by_row`: pixels are [rows, most pictures, ...], padded with zeros;
    `rows`: positions are rows that the model makes of the ids alone; `arranged(inputs, ids, seeds of each row)`: the
    inputs as a processor arranges them that says of each word what it sees.
    """

    config: Callable[[], Any]
    images: Callable[[Sequence[int]], tuple[dict[str, Tensor], list[list[int]]]]
    videos: Callable[[Sequence[int]], tuple[dict[str, Tensor], list[list[int]]]] | None = None
    typed: bool = False
    video: int = VIDEO
    more: Callable[[Tensor], dict[str, Tensor]] | None = None
    by_row: bool = False
    rows: bool = False
    arranged: Callable[[dict[str, Tensor], Tensor, Sequence[Sequence[int]]], dict[str, Tensor]] | None = None


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GRIDS = [(1, 12, 8), (1, 10, 14), (1, 8, 8), (1, 6, 12)]  # patches; 2 x 2 of them make a token
CLIPS = [(3, 4, 6), (2, 6, 4), (5, 4, 4)]  # patches; 2 x 2 of them make a token


def square(pixels: int, tokens: int, before: Sequence[int] = (), after: Sequence[int] = ()) -> Images:
    """One square crop a picture."""

    def images(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
        if not seeds:
            return {}, []
        prompts = [[*before, *[IMAGE] * tokens, *after] for _ in seeds]
        return {"pixel_values": torch.stack([noise(s, 3, pixels, pixels) for s in seeds])}, prompts

    return images
