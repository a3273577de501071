"""What decode steps read of a compressed cache layer when they do not read all of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROOM = 64  # tokens that may follow before a window moves


@dataclass(eq=False)
class Reading:
    """The rows of a layer's prompt that decode steps attend to; what came later is always read.

    Attributes:
        rows: LongTensor [B, R], in ascending order; shorter ones begin with rows that are not `valid`.
        valid: BoolTensor [B, R]; None = all.
    """

    rows: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, keep: Tensor, width: int, ragged: bool) -> Reading:
        """The rows `keep` BoolTensor [B, prompt]; `width` is the largest count, `ragged` whether counts differ."""
        rows = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - width :]  # what stays goes last
        return cls(rows, keep.gather(1, rows) if ragged else None)

    def whole(self, prompt: int, held: int) -> Tensor:
        """LongTensor [B, R + held - prompt]: `rows`, and all of the layer's rows behind its prompt."""
        later = torch.arange(prompt, held, device=self.rows.device).expand(len(self.rows), -1)
        return torch.cat([self.rows, later], dim=1)


class Window:
    """A layer's keys and values as a Reading reads them, gathered once; while it stands, new tokens are put behind.

    Whether it stands is for the layer to know.

    Attributes:
        held: how many rows of the layer it stands for. width: how many it has, R and those of later tokens.
    """

    def __init__(self, index: Tensor, keys: Tensor, values: Tensor) -> None:
        self.held, self.width = keys.shape[2], index.shape[1]
        self._memory = [_with_room(rows_of(x, index)) for x in (keys, values)]

    def fits(self, keys: Tensor) -> bool:
        """Whether it can follow a layer that has grown to `keys` [B, G, held, d]."""
        if not self.held <= keys.shape[2] <= self.held + ROOM:
            return False
        # what was made under inference mode cannot be written outside of it
        return torch.is_inference_mode_enabled() or not self._memory[0].is_inference()

    def follow(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the layer's new rows behind: (keys, values) to attend to."""
        new = keys.shape[2] - self.held
        end = self.width + new
        if end > self._memory[0].shape[2]:
            self._memory = [_with_room(x[:, :, : self.width]) for x in self._memory]
        for memory, x in zip(self._memory, (keys, values), strict=True):
            memory[:, :, self.width : end] = x[:, :, self.held :]
        self.held, self.width = keys.shape[2], end
        return self._memory[0][:, :, :end], self._memory[1][:, :, :end]


def _with_room(x: Tensor) -> Tensor:
    memory = x.new_empty(*x.shape[:2], x.shape[2] + ROOM, x.shape[3])
    memory[:, :, : x.shape[2]] = x
    return memory


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, R], or [B, G, R] of each head, of keys or values [B, G, N, d], copied row by row."""
    b, groups, n, width = x.shape
    index = index.to(x.device)
    if index.dim() == 2:
        if b == 1:
            return x.index_select(2, index[0])
        index = index[:, None]
    first = torch.arange(b * groups, device=x.device).view(b, groups, 1) * n
    return x.reshape(-1, width).index_select(0, (first + index).view(-1)).view(b, groups, -1, width)
