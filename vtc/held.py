"""Held: what the KV heads of one layer hold of some cached tokens; a Selection for each head, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vtc.selection import Selection


@dataclass(frozen=True, eq=False)
class Held:
    """Which of N cached tokens each KV head keeps, and what it makes of the others; G = 1 stands for all heads alike.

    Example: of five tokens a head keeps the second and the last, and the third is taken in by the last:

        anchor    1  4              rows that stay
        source   -1  0  1 -1  1     which of them takes each token in; -1 = it is dropped
        values    0  1 .5  0 .5     output m is the sum of values[i] * v[i] over source[i] == m; keys likewise

    Attributes:
        anchor: LongTensor [G, M], ascending; heads that hold fewer begin with -1.
        total: N.
        source: LongTensor [G, N], a column of `anchor` or -1; None = nothing is taken in.
        keys, values: FloatTensors [G, N], what a token counts for in its output; None = each anchor stays as it is.
        rotated: keys are added as they are cached; False = turned back to their positions' origin first, and the sum is
            turned to the position of its anchor.
        rows: FloatTensor [G, M], how many tokens an output stands for in the softmax: their logarithm is added to its
            logits. None = one each.
    """

    anchor: Tensor
    total: int
    source: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    rotated: bool = False
    rows: Tensor | None = None

    @classmethod
    def of(cls, selection: Selection) -> Self:
        """What all heads hold alike; a Selection that merges does so with keys and values."""
        chosen = selection.sorted()
        if chosen.pruned or not chosen.merges:
            return cls(chosen.anchor[None], chosen.tokens_in)
        weight = chosen.weight[None]
        return cls(chosen.anchor[None], chosen.tokens_in, chosen.source[None], weight, weight)

    @property
    def heads(self) -> int:
        """KV heads; 1 = all alike."""
        return self.anchor.shape[0]

    @property
    def merges(self) -> bool:
        """Whether an output may be more than its anchor."""
        return self.keys is not None or self.values is not None

    @property
    def own_rows(self) -> bool:
        """Whether more is held than some of the tokens, the same ones in every head."""
        return self.heads > 1 or self.merges or self.weighs

    @property
    def weighs(self) -> bool:
        """Whether an output may stand for several tokens in the softmax."""
        return self.rows is not None

    def to(self, device: torch.device) -> Held:
        """The same on `device`."""
        moved = {
            name: value.to(device)
            for name in ("anchor", "source", "keys", "values", "rows")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def selection(self, head: int) -> Selection:
        """What one head holds, by the weights of its values."""
        number = head if self.heads > 1 else 0
        real = self.anchor[number] >= 0
        anchor = self.anchor[number][real]
        if self.source is None:
            return Selection.prune(anchor, self.total, ascending=True)
        filled = int((~real).sum())
        source = torch.where(self.source[number] >= 0, self.source[number] - filled, -1)
        if self.values is None:
            weight = torch.zeros(self.total, device=anchor.device).index_fill_(0, anchor, 1.0)
        else:
            weight = self.values[number]
        return Selection(anchor, source, weight)

    def check(self, heads: int) -> Held:
        """Raise ValueError if the parts do not fit together; returns itself."""
        g, m = self.anchor.shape
        if g not in (1, heads):
            raise ValueError(f"Held.anchor has shape {tuple(self.anchor.shape)}: expected 1 or {heads} KV heads first.")
        real = self.anchor >= 0
        falls = (self.anchor.diff(dim=1) <= 0) & real[:, :-1]
        if m and (bool(falls.any()) or int(self.anchor.max()) >= self.total or not bool(real.any(dim=1).all())):
            raise ValueError(f"Held.anchor must hold ascending indices in [0, {self.total}), at least one per head.")
        for name in ("source", "keys", "values"):
            value = getattr(self, name)
            if value is not None and value.shape != (g, self.total):
                raise ValueError(f"Held.{name} has shape {tuple(value.shape)}; expected ({g}, {self.total}).")
        if self.merges and self.source is None:
            raise ValueError("a Held with weights of keys or values says in `source` what is taken in by what.")
        if self.rows is not None and self.rows.shape != (g, m):
            raise ValueError(f"Held.rows has shape {tuple(self.rows.shape)}; expected ({g}, {m}).")
        return self
