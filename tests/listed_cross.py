"""Tiny random-weight models of families whose visual tokens stand in a memory beside the row, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from tests.listed_parts import INDEX, config_of
from tests.tiny_parts import IMAGE, TEXT, Family, noise

#: rows and columns of tiles: the number in transformers' list of shapes (from 1), and the shape, one per seed in turn
SHAPES = {1: (1, 1), 6: (2, 2), 2: (1, 2), 7: (3, 1)}
#: pixels along a tile, 4 x 4 patches; tokens of it, one of which is a CLS token
TILE, TOKENS, TILES = 16, 17, 4


def counted(seed: int) -> tuple[int, int]:
    """The number of a picture's shape, and how many tiles it has."""
    number, (h, w) = list(SHAPES.items())[seed % len(SHAPES)]
    return number, h * w


def _pictures(seeds: Sequence[int]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """One placeholder a picture, of whatever size; `_arranged` says the rest."""
    if not seeds:
        return {}, []
    pixels = torch.zeros(len(seeds), TILES, 3, TILE, TILE)
    for i, seed in enumerate(seeds):
        pixels[i, : counted(seed)[1]] = noise(seed, TILES, 3, TILE, TILE)[: counted(seed)[1]]
    return {"pixel_values": pixels}, [[IMAGE] for _ in seeds]


def _arranged(inputs: dict[str, Tensor], ids: Tensor, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """As transformers' processor arranges pictures: [rows, most pictures, tiles, ...], of which a word sees the last
    that came before it; pictures side by side are seen together."""
    if "pixel_values" not in inputs:
        return inputs
    pixels, most = iter(inputs["pixel_values"]), max(map(len, rows))
    found = torch.zeros(len(rows), most, *inputs["pixel_values"].shape[1:])
    shapes = torch.zeros(len(rows), most, dtype=torch.long)
    filled = torch.zeros(len(rows), most, TILES, dtype=torch.long)
    filled[:, :, 0] = 1
    seen = torch.zeros(*ids.shape, most, TILES, dtype=torch.long)
    for r, row in enumerate(rows):
        places = (ids[r] == IMAGE).nonzero()[:, 0].tolist()
        for i, seed in enumerate(row):
            found[r, i] = next(pixels)
            shapes[r, i], tiles = counted(seed)
            filled[r, i, :tiles] = 1
            end = next((p for before, p in zip(places[i:], places[i + 1 :], strict=False) if p > before + 1), None)
            seen[r, places[i] : end, i, :tiles] = 1
    return inputs | {
        "pixel_values": found,
        "aspect_ratio_ids": shapes,
        "aspect_ratio_mask": filled,
        "cross_attention_mask": seen,
    }


_MADE: dict[str, Callable[[], Family]] = {
    "mllama": lambda: Family(
        config_of(
            "mllama",
            vision_config={
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 3,
                "num_global_layers": 2,
                "attention_heads": 3,
                "image_size": TILE,
                "patch_size": 4,
                "vision_output_dim": 72,
                "intermediate_layers_indices": [0, 2],
            },
            text_config={**TEXT, "num_hidden_layers": 5, "cross_attention_layers": [1, 3]},
            **INDEX,
        ),
        _pictures,
        arranged=_arranged,
    ),
}
CROSS: dict[str, Any] = {name: made() for name, made in _MADE.items() if name in CONFIG_MAPPING}
