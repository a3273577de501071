"""Towers that take crops of a fixed grid, a batch row each: patches leave before the first block, and come back behind
the last one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def patches_of(kept: Tensor, crops: int, width: int, fold: int) -> Tensor:
    """BoolTensor [B, T]: the patches of the tokens `kept` [B * h * w], of grids `width` tokens wide, fold x fold each.

    Example: of a crop of 1 x 2 tokens of 2 x 2 patches each the second: 0 0 1 1 / 0 0 1 1.
    """
    grid = kept.view(crops, -1, width)
    return grid.repeat_interleave(fold, dim=1).repeat_interleave(fold, dim=2).flatten(1)


def rows_of(patches: Tensor, first: int) -> Tensor:
    """LongTensor [B, M]: which rows of each crop are there, in order, of `patches` [B, T] as many a crop; the `first`
    rows in front of them (CLS) always are.

    Example: the one of `patches_of`, with a CLS token: 0 3 4 7 8.
    """
    there = torch.nn.functional.pad(patches, (first, 0), value=True)
    return there.nonzero()[:, 1].view(len(patches), -1)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """[B, N, D] -> [B, M, D]."""
    return x.gather(1, rows.to(x.device)[..., None].expand(-1, -1, x.shape[2]))


def put_back(output: Any, rows: Tensor, total: int) -> None:
    """Give the hidden states in a tower's output their full length `total` again, with zeros for what is gone."""

    def spread(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[1] != rows.shape[1]:
            return x
        return x.new_zeros(len(x), total, x.shape[2]).scatter(
            1, rows.to(x.device)[..., None].expand(-1, -1, x.shape[2]), x
        )

    output["last_hidden_state"] = spread(output.last_hidden_state)
    if getattr(output, "hidden_states", None) is not None:
        output["hidden_states"] = tuple(spread(x) for x in output.hidden_states)
