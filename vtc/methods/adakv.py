"""Ada-KV: SnapKV with a budget for each head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.method import Paper, top_k
from vtc.methods.shared.cached import rounded
from vtc.methods.snapkv import SnapKV


@dataclass(frozen=True, kw_only=True)
class AdaKV(SnapKV):
    """SnapKV, with budgets by what heads attend to.

    Heads with spread attention hold more than heads that look at little; a layer holds as much as it would.

    Source: arXiv 2407.11550, section 4, algorithm 1: of all scores of a layer, those of all heads together, the highest
    are marked, as many as there is budget; a head's share is how many of them are its own, and its budget is `floor` of
    the even one and for the rest its share. As the paper's Ada-SnapKV. Whole numbers that add up, largest remainders
    first; a head holds at least 1.

    Deviation: by scope="all" the paper's form has `sinks=0`; sinks and window are each head's, and no part of what is
    shared out.

    Args:
        floor: what of an even share each head has in any case; 1 = SnapKV.
    """

    name = "adakv"
    floor: float = 0.2
    paper = Paper(
        "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference", "2407.11550"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.floor, "floor", 0, 1, what="a share of an even budget")
        if not self.per_head:
            raise ValueError(f"per_head=False of {self.title} leaves no heads to share out among: use snapkv.")

    @property
    def uneven_heads(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    def head_budgets(self, score: Tensor, count: int) -> Tensor | None:
        heads, own = score.shape[0], int((score[0] == torch.inf).sum())
        free = count - own
        if free < 1:
            return None
        open_ = score.masked_fill(score == torch.inf, -torch.inf)
        best = top_k(open_.flatten(), heads * free)
        share = torch.bincount(best // score.shape[1], minlength=heads).tolist()
        parts = rounded([self.floor * free + (1 - self.floor) * part for part in share])
        least = 0 if own else 1
        while min(parts) < least:
            parts[parts.index(max(parts))] -= 1
            parts[parts.index(min(parts))] += 1
        return torch.tensor([own + part for part in parts])
