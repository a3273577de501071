"""EVS: of a video, what changes from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Method, top_k
from vtc.methods.shared.clips import cosines, frame_rows
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class EVS(Method):
    """Places that changed since the frame before.

    Efficient video sampling: tokens least like the same place one frame earlier; the first frame stays whole.

    Source: vLLM's `vllm/multimodal/evs.py`. The score is 1 - cosine to the previous frame, the budget one for the whole
    clip and never less than a frame. On short clips or small budgets nothing but the first frame is left; `first` mends
    that.

    Args:
        first: largest share of the budget that the first frame may take, unless the others cannot fill the rest; 1 = it
            stays whole, as in vLLM. With less, it gives its most different tokens (max-min, as DivPrune), and the
            budget is exact, as far as there are tokens besides separators.
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
        check_number(self.first, "first", above=0, high=1, what="a share of the budget")

    def select(self, tokens: VisualTokens) -> Selection:
        n, budget = len(tokens.features), self.count(tokens)
        score, opening = changes(tokens)
        if self.first == 1:
            kept = top_k(score, max(budget, len(opening)))
        else:
            later = int(torch.isfinite(score).sum())  # all there is behind the first frame
            few = min(len(opening), max(1, round(self.first * budget), budget - later))
            start = opening[ops.greedy_diversity(tokens.features[opening][None], few, "maxmin")[0]]
            score.index_fill_(0, opening, -torch.inf)
            kept = torch.cat([start, top_k(score, min(budget, n) - few)]).unique()
        return Selection.prune(kept, n)


def changes(tokens: VisualTokens) -> tuple[Tensor, Tensor]:
    """How much each token differs from the last one seen at its place, [N], and the tokens of the first frame.

    1 - cosine, in [0, 2]; 2 where an earlier stage has left nothing to compare with, infinity in the first frame, minus
    infinity for separators.
    """
    rows = frame_rows(tokens)  # [t, places]
    change = (1 - cosines(tokens, rows)).clamp(max=2.0)
    change[0] = torch.inf
    there = rows >= 0
    score = torch.full((len(tokens.features),), -torch.inf, device=rows.device)
    score[rows[there]] = change[there]
    return score, rows[0][there[0]]
