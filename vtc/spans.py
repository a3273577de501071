"""Find the visual spans of a batch: which tokens belong to which image, and to which run of the vision tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtc.layout import VisualLayout, VisualSpan
from vtc.models.base import Adapter, ImageLayout, TowerCall


def find_layout(
    adapter: Adapter,
    model: nn.Module,
    visual: Tensor,
    embeds: Tensor,
    pooled: Any,
    grid_thw: Tensor | None,
    call: TowerCall | None,
) -> VisualLayout:
    """The layout of one batch.

    Args:
        visual: BoolTensor [B, L], True at visual tokens.
        embeds: [B, L, D], the language model's input with image features in place.
        pooled: the encoder's features, one [N, D] per image (or tile), in reading order; None if unknown, then every
            unbroken run of visual tokens is one image.
        grid_thw: [images, 3] patch grids where the family has them.
        call: the tower's run, if known; its signals are addressed by each span's `patch`.
    """
    where = visual.cpu().nonzero()  # [V, 2], reading order
    rows, length = visual.shape
    if not len(where):
        return VisualLayout(rows, length, ())
    pieces = _pieces(where, pooled, adapter.joins_pieces)
    placed: list[tuple[int, Tensor]] = []
    for piece in pieces:
        row = int(piece[0, 0])
        if int(piece[-1, 0]) != row:
            raise ValueError(
                "the number of image tokens in the prompt does not match the images: an image crosses two rows."
            )
        placed.append((row, piece[:, 1]))

    known = len(grid_thw) if grid_thw is not None and adapter.mrope else None
    images, expansion = _images([row for row, _ in placed], known)
    layouts: list[ImageLayout] = []
    for (row, index), image in zip(placed, images, strict=True):
        features = embeds[row, index.to(embeds.device)]
        layouts.append(adapter.layout(model, features, image, grid_thw))
    if known is None and call is not None:
        crops = sum(layout.crops for layout in layouts)
        if call.crops == 0 or crops % call.crops:
            raise ValueError(
                f"the prompt shows {crops} crops, but the vision tower saw {call.crops}; pass one run's features."
            )
        images, expansion = _images([row for row, _ in placed], len(placed) * call.crops // crops)

    offsets: dict[int, int] = {}
    start = 0
    for layout, image in zip(layouts, images, strict=True):
        if image not in offsets:
            offsets[image] = start
            start += layout.tower_tokens
    spans = [
        VisualSpan(
            row=row,
            index=index,
            grid=layout.grid,
            tiles=layout.tiles,
            image=image,
            crop=layout.crop,
            patch=torch.where(layout.patch >= 0, layout.patch + offsets[image], -1),
        )
        for (row, index), layout, image in zip(placed, layouts, images, strict=True)
    ]
    return VisualLayout(rows, length, tuple(spans), expansion)


def _pieces(where: Tensor, pooled: Any, join: bool) -> list[Tensor]:
    """Split visual positions [V, 2] into one [N, 2] per image."""
    breaks = (where.diff(dim=0) != torch.tensor([0, 1])).any(dim=1).nonzero().flatten() + 1
    runs = list(where.tensor_split(breaks))
    if pooled is None or join:
        return runs
    lengths = [len(features) for features in pooled]
    if sum(lengths) != len(where):
        raise ValueError(f"the prompt has {len(where)} image tokens, but the images make {sum(lengths)}.")
    return list(where.split(lengths))


def _images(rows: list[int], distinct: int | None) -> tuple[list[int], int]:
    """Number the images, and tell how many rows share a prompt.

    Beam search and several return sequences repeat every row `expansion` times in a row; their images are the same.

    Args:
        rows: batch row of each span, ascending. distinct: how many different images there are, if known.
    """
    expansion = 1 if not distinct else max(len(rows) // distinct, 1)
    if distinct and len(rows) != distinct * expansion:
        raise ValueError(f"the prompt shows {len(rows)} images, but {distinct} were encoded.")
    numbers: list[int] = []
    by_row: dict[int, list[int]] = {}
    fresh = 0
    for row in rows:
        own = by_row.setdefault(row, [])
        first = row - row % expansion
        if row == first:
            own.append(fresh)
            fresh += 1
        else:
            own.append(by_row[first][len(own)])
        numbers.append(own[-1])
    return numbers, expansion
