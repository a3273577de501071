"""DyCoke: frames merge in windows of four; while decoding, most of what is left rests beside the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.budget import check_layer
from vtc.checks import check_number
from vtc.methods.base.cache import ActiveMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.shared.clips import cosines, frame_rows, share_out, with_separators
from vtc.selection import Selection
from vtc.signals import VisualTokens

COMPARED = (0, 1, 2, 1)  # of a window: the frame that each frame is compared with lies so many before it
WINDOW = len(COMPARED)


@dataclass(frozen=True, kw_only=True)
class DyCoke(Method):
    """Token temporal merging before the language model, dynamic pruning of the KV cache while decoding.

    Source: arXiv 2411.15024. (1) Section 3.2: of every window of four frames the first stays whole; the second and the
    third keep the tokens least like the same place in the first, the fourth those least like the third. What goes is
    dropped, in the released code as here: the earlier token stands for it. The code loses the last frame of a clip with
    an odd number and leaves short windows half done; here a short window is treated like a long one. (2) Section 3.3:
    in each decode step the layers from `layer` on attend to the share 1 - `p` of the video's tokens that the layer
    before them, which sees all, looks at most from the token just predicted. The others rest in the dynamic pruning
    cache: a step is cheaper, but no memory is freed. The choice is made anew when the cosine of that attention with the
    step before falls below `refresh`. As in the code one layer decides for all; here row by row of a batch. Forwards
    of several tokens (another turn, assisted decoding) see everything again. Images are left alone.

    Args:
        keep: budget of stage 1; the default is what the paper's k = 0.7 leaves of windows of four. Below a quarter the
            first frames give their most different tokens (max-min, as DivPrune) and the others nothing.
        k: share of the later frames' tokens that goes, as in the paper; it replaces `keep`.
        first: largest share of the budget that the windows' first frames may take; less than 1 leaves the later frames
            something at small budgets, too.
        p: share of the video's tokens that rests while decoding; None = stage 1 alone.
        layer: first decoder layer that attends to a part only: layer 3 of the paper's 28, or any number or share.
        refresh: cosine below which the choice is made anew.
    """

    name = "dycoke"
    keep: int | float = 0.475
    k: float | None = None
    first: float = 1.0
    p: float | None = 0.7
    layer: int | float = 3 / 28
    refresh: float = 0.9
    needs = ("grid",)
    modality = ("video",)
    scopes = ("clip",)
    positions_default = "compact"
    paper = Paper("DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", "2411.15024")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is not None:
            check_number(self.k, "k", 0, 1, what="the share of the later frames' tokens that goes")
        check_number(self.first, "first", above=0, high=1, what="the first frames' share of the budget")
        if self.p is not None:
            what = "the share of the video's tokens that rests (None = stage 1 alone)"
            check_number(self.p, "p", 0, below=1, what=what)
        check_number(self.refresh, "refresh", -1, 1, what="a cosine")
        check_layer(self.layer, "layer")

    def parts(self) -> tuple[Method, ...]:
        if self.p is None:
            return (self,)
        return replace(self, p=None), Resting(keep=1 - self.p, first=self.layer, refresh=self.refresh)

    def keeps_all(self) -> bool:
        """Not if `k` stands in for the budget, nor with stage 2, which lets decode steps attend to a part."""
        return self.k is None and self.p is None

    def select(self, tokens: VisualTokens) -> Selection:
        n, budget, rows = len(tokens.features), self.count(tokens), frame_rows(tokens)
        there = rows >= 0  # [T, P]
        opening = torch.arange(len(rows), device=rows.device) % WINDOW == 0
        start, sizes = rows[opening][there[opening]], there[~opening].sum(dim=1).tolist()
        if self.k is not None:
            shares = [int((1 - self.k) * size + 1e-6) for size in sizes]
            budget = len(start) + sum(shares) + int(tokens.separators.sum())
        else:
            few = min(len(start), max(1, round(self.first * budget), budget - sum(sizes)))
            if few < len(start):
                start = start[ops.greedy_diversity(tokens.features[start][None], few)[0]]
            shares = share_out(budget - few, sizes, sizes)
        kept, likeness = [start], cosines(tokens, rows, COMPARED)[~opening]
        for own, alike, share in zip(rows[~opening], likeness, shares, strict=True):
            own, alike = own[own >= 0], alike[own >= 0]
            kept.append(own[top_k(-alike, share)])
        return Selection.prune(with_separators(tokens, torch.cat(kept), budget), n)


@dataclass(frozen=True, kw_only=True)
class Resting(ActiveMethod):
    """DyCoke's second stage: `keep` of the video's tokens are active in a decode step, from layer `first` on."""

    refresh: float = 0.9
    modality = ("video",)

    @property
    def title(self) -> str:
        return "dycoke"

    def stale(self, before: Tensor, now: Tensor) -> Tensor:
        return F.cosine_similarity(before, now, dim=1) < self.refresh
