"""EVS: of a video, what changes from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.methods.base import Method, top_k
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class EVS(Method):
    """Efficient video sampling: tokens least like the same place one frame earlier; the first frame stays whole.

    Source: vLLM's `vllm/multimodal/evs.py`. The score is 1 - cosine to the previous frame, the budget one for the whole
    clip and never less than a frame. On short clips or small budgets nothing but the first frame is left; `first` mends
    that.

    Args:
        first: largest share of the budget that the first frame may take; 1 = it stays whole, as in vLLM. With less, it
            gives its most different tokens (max-min, as DivPrune), and the budget is exact.
    """

    name = "evs"
    keep: int | float = 0.3
    first: float = 1.0
    needs = ("grid",)
    exact_count = False
    modality = ("video",)
    scopes = ("clip",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.first, bool) or not 0 < self.first <= 1:
            raise ValueError(f"first={self.first!r} is outside (0, 1]: it is a share of the budget.")

    def select(self, tokens: VisualTokens) -> Selection:
        n, budget = len(tokens.features), self.count(tokens)
        score, opening = changes(tokens)
        if self.first == 1:
            kept = top_k(score, max(budget, len(opening)))
        else:
            few = min(len(opening), max(1, round(self.first * budget)))
            start = opening[ops.greedy_diversity(tokens.features[opening][None], few)[0]]
            score[opening] = -torch.inf
            kept = torch.cat([start, top_k(score, min(budget, n) - few)]).unique()
        return Selection.prune(kept, n)


def changes(tokens: VisualTokens) -> tuple[Tensor, Tensor]:
    """How much each token differs from the last one seen at its place, [N], and the tokens of the first frame.

    1 - cosine, in [0, 2]; 2 where an earlier stage has left nothing to compare with, infinity in the first frame, minus
    infinity for separators.
    """
    device = tokens.features.device
    x = F.normalize(tokens.features.float(), dim=-1)
    row_of = torch.full((tokens.total,), -1, dtype=torch.long, device=device)
    row_of[tokens.index] = torch.arange(len(x), device=device)
    score = torch.full((len(x),), -torch.inf, device=device)
    opening = torch.arange(0, device=device)
    for tile in tokens.span.tiles:
        frames = row_of[tile.indices().flatten(1).to(device)]  # [t, h * w], -1 = gone
        last = torch.zeros(frames.shape[1], x.shape[1], device=device)
        seen = torch.zeros(frames.shape[1], dtype=torch.bool, device=device)
        for number, rows in enumerate(frames):
            there = rows >= 0
            own = rows[there]
            if number == 0:
                score[own], opening = torch.inf, torch.cat([opening, own])
            else:
                cosine = (x[own] * last[there]).sum(dim=-1)
                score[own] = torch.where(seen[there], 1 - cosine, 2.0)
            last[there], seen = x[own], seen | there
    return score, opening
