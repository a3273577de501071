"""(t, h, w) positions of pruned pictures, for language models with M-RoPE. No vLLM here: numbers alone.

vLLM asks for a prompt's positions before the vision tower has run, when nobody knows which tokens stay. So each kept
token is given the place where its picture begins, and text goes on where it would after the whole picture. How far the
token lies from there travels behind its embedding, and is added when it is about to be read.

Example: one text token, a picture of 1 x 2 x 3 tokens of which two stay, one more text token:

    whole      t 0  1 1 1 1 1 1  4          what the prompt is given   0  1 1  4
               h 0  1 1 1 2 2 2  4                                     0  1 1  4
               w 0  1 2 3 1 2 3  4                                     0  1 1  4
    kept             x       x              added to the kept two      t 0 0, h 0 1, w 1 1
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

#: columns that `packed` adds
COLUMNS = 6
_BASE = 256  # bfloat16 holds whole numbers up to here


class Media(NamedTuple):
    """A picture or video in a prompt: where its `kept` tokens begin, its grid (t, h, w), positions per time step."""

    start: int
    kept: int
    grid: tuple[int, int, int]
    step: float = 1.0


def prompt_positions(length: int, media: Iterable[Media]) -> tuple[Tensor, int]:
    """Positions of a prompt of `length` tokens, pictures pruned: LongTensor [3, length], all three alike; and what is
    to be added to a later token's number in the row."""
    rows, done, position = [], 0, 0
    for one in sorted(media):
        text = one.start - done
        rows.append(torch.arange(position, position + text))
        rows.append(torch.full((one.kept,), position + text))
        t, h, w = one.grid
        position += text + max(int((t - 1) * one.step), h - 1, w - 1) + 1
        done = one.start + one.kept
    rows.append(torch.arange(position, position + length - done))
    return torch.cat(rows).expand(3, -1).contiguous(), position - done


def offsets(grid: tuple[int, int, int], step: float = 1.0) -> Tensor:
    """LongTensor [t * h * w, 3]: how far each token of a grid lies from where it begins.

    Args:
        step: positions per time step, whose multiples are cut to whole numbers.
    """
    t, h, w = grid
    places = torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).view(-1, 3)
    places[:, 0] = (places[:, 0].double() * step).long()
    return places


def packed(features: Tensor, places: Tensor) -> Tensor:
    """Features [M, D] with `places` [M, 3] behind them, [M, D + 6]: each number as two digits to the base 256, which
    every dtype of features holds exactly."""
    digits = torch.cat([places // _BASE, places % _BASE], dim=1)
    return torch.cat([features, digits.to(features)], dim=1)


def unpacked(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[M, D + 6] as `packed` made them: features [M, D] and LongTensor [M, 3]."""
    high, low = rows[:, -COLUMNS:].long().split(3, dim=1)
    return rows[:, :-COLUMNS], high * _BASE + low
