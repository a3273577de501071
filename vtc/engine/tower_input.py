"""TowerInput: what was done to the input of one run of the vision tower, and what the tower is spared by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.cost import TowerCost
from vtc.engine.pixel_blocks import Chosen
from vtc.models.tower import Tower
from vtc.reports import TowerReport

Stretches = list[list[int]]  # per block, the numbers of rows that attend within themselves


@dataclass(frozen=True, eq=False)
class TowerInput:
    """What was done to the input of one run.

    Attributes:
        whole, small: grids as they came, and small ones, LongTensors [pictures, 3] of patches in main memory, of towers
            that take packed ones.
        chosen: what is left of the small ones; None = no method chooses.
        crops: how many pictures a tower of a fixed grid is given.
        rows: LongTensor [B, M], the rows that the blocks see, of towers of a fixed grid that lose some.
    """

    whole: Tensor | None = None
    small: Tensor | None = None
    chosen: Chosen | None = None
    crops: int = 0
    rows: Tensor | None = None

    def as_item(self) -> dict[str, Any]:
        """As plain containers of tensors and numbers, to travel with the tower's output."""
        grids = {"crops": self.crops} if self.whole is None else {"whole": self.whole, "small": self.small}
        return grids if self.chosen is None else {**grids, "kept": self.chosen.kept, "ms": self.chosen.ms}

    @classmethod
    def of_item(cls, item: dict[str, Any]) -> TowerInput:
        whole, small = (item[name].cpu() if name in item else None for name in ("whole", "small"))
        chosen = Chosen(item["kept"].cpu(), item["ms"]) if "kept" in item else None
        return cls(whole, small, chosen, item.get("crops", 0))

    def stretches(self, tower: Any, facts: Tower, fold: int) -> tuple[Stretches, Stretches]:
        """As the pictures came, and as the tower ran, of a fixed grid with the CLS token.

        Args:
            fold: patches of a side of a fixed grid that make a token.
        """
        if self.whole is not None and self.small is not None:
            merge = facts.packing(tower).merge
            tokens = [int(grids.prod(dim=1).sum()) // merge**2 for grids in (self.whole, self.small)]
            everything = [torch.ones(n, dtype=torch.bool) for n in tokens]
            kept = everything[1] if self.chosen is None else self.chosen.last
            return facts.stretches(tower, self.whole, everything[0]), facts.stretches(tower, self.small, kept)
        assert self.chosen is not None
        kept, first, depth = self.chosen.last, int(facts.has_cls), len(facts.blocks(tower))
        full, left = (first + n // self.crops * fold**2 for n in (kept.numel(), int(kept.sum())))
        return [[full] * self.crops] * depth, [[left] * self.crops] * depth


def tower_report(tower: Any, facts: Tower, fold: int, runs: Sequence[TowerInput]) -> TowerReport:
    """The account of some runs."""
    found = [run.stretches(tower, facts, fold) for run in runs]
    pictures = sum(run.crops if run.whole is None else len(run.whole) for run in runs)
    prefixes = sum(run.crops for run in runs) * int(facts.has_cls)
    left, flops = [], []
    for i, (block, attention) in enumerate(zip(facts.blocks(tower), facts.attentions(tower), strict=True)):
        cost = TowerCost.of(block, attention, facts.width(attention))
        both = [[cost.flops(sum(one[i]), sum(one[i]), sum(n * n for n in one[i])) for one in run] for run in found]
        flops.append((sum(full for full, _ in both), sum(kept for _, kept in both)))
        left.append(sum(sum(kept[i]) for _, kept in found) - prefixes)
    whole = sum(sum(full[0]) for full, _ in found) - prefixes
    return TowerReport(pictures, whole, tuple(left), tuple(flops))
