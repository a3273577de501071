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
WINDOWS = ("paper", "released")


@dataclass(frozen=True, kw_only=True)
class DyCoke(Method):
    """Merges over time, reads a part of the cache.

    Token temporal merging before the language model, dynamic pruning of the KV cache while decoding.

    Source: arXiv 2411.15024. (1) Section 3.2: of every window of four frames the first stays whole; the second and the
    third keep the tokens least like the same place in the first, the fourth those least like the third. What goes is
    dropped, in the released code as here: the earlier token stands for it. A window at the end with fewer frames is
    treated alike. (2) Section 3.3: in each decode step the layers from `layer` on attend to the share 1 - `p` of the
    video's tokens that the layer before them, which sees all, looks at most from the token just predicted. The others
    rest in the dynamic pruning cache: a step reads less, but no memory is freed. The choice is made anew when the
    cosine of that attention with the step before falls below `refresh`; else the old one serves again. As in the code
    one layer decides for all; here row by row of a batch. Forwards of several tokens (another turn, assisted decoding)
    see everything again. Images are left alone.

    Where the released code differs from the paper, options follow it. Its loop over windows stops four frames before
    the end: in a last window of four the third frame stays whole, the last of an odd number of frames is lost, and
    clips of four frames or fewer end in an error (`windows="released"`). While decoding it forgets its choice in every
    step before it asks whether a new one is due; where none is, the step attends to everything (`reset=True`). It
    rounds the number of active tokens down, here it is rounded to the nearest: one token at most.

    Args:
        keep: budget of stage 1; the default is what the paper's k = 0.7 leaves of windows of four. Below a quarter the
            first frames give their most different tokens (max-min, as DivPrune) and the others nothing.
        k: share of the later frames' tokens that goes, as in the paper; it replaces `keep`.
        first: largest share of the budget that the frames that stay whole may take; less than 1 leaves the others
            something at small budgets, too.
        windows: "paper", or "released" with the code's last window.
        p: share of the video's tokens that rests while decoding; None = stage 1 alone.
        layer: first decoder layer that attends to a part only: layer 3 of the paper's 28, or any number or share.
        refresh: cosine below which the choice is made anew.
        reset: whether steps that need no new choice attend to everything, as in the released code.
    """

    name = "dycoke"
    keep: int | float = 0.475
    k: float | None = None
    first: float = 1.0
    windows: str = "paper"
    p: float | None = 0.7
    layer: int | float = 3 / 28
    refresh: float = 0.9
    reset: bool = False
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
        if self.windows not in WINDOWS:
            raise ValueError(f"windows={self.windows!r} is not one of {', '.join(WINDOWS)}.")
        if self.p is not None:
            what = "the share of the video's tokens that rests (None = stage 1 alone)"
            check_number(self.p, "p", 0, below=1, what=what)
        check_number(self.refresh, "refresh", -1, 1, what="a cosine")
        check_layer(self.layer, "layer")

    def parts(self) -> tuple[Method, ...]:
        if self.p is None:
            return (self,)
        return replace(self, p=None), Resting(keep=1 - self.p, first=self.layer, refresh=self.refresh, reset=self.reset)

    def keeps_all(self) -> bool:
        """Not if `k` stands in for the budget, nor with stage 2, which lets decode steps attend to a part."""
        return self.k is None and self.p is None and self.windows == "paper"

    def select(self, tokens: VisualTokens) -> Selection:
        n, budget, rows = len(tokens.features), self.count(tokens), frame_rows(tokens)
        likeness = cosines(tokens, rows, COMPARED)
        opening = torch.arange(len(rows), device=rows.device) % WINDOW == 0  # frames that stay whole
        if self.windows == "released":
            rows, opening = self._as_released(rows, opening)
        there = rows >= 0  # [T, P]
        start, sizes = rows[opening][there[opening]], there[~opening].sum(dim=1).tolist()
        if self.k is not None:
            shares = [int((1 - self.k) * size + 1e-6) for size in sizes]
            budget = len(start) + sum(shares) + int(tokens.separators.sum())
        else:
            few = min(len(start), max(1, round(self.first * budget), budget - sum(sizes)))
            if few < len(start):
                start = start[ops.greedy_diversity(tokens.features[start][None], few, "maxmin")[0]]
            shares = share_out(budget - few, sizes, sizes)
        kept = [start]
        for own, alike, share in zip(rows[~opening], likeness[~opening], shares, strict=True):
            own, alike = own[own >= 0], alike[own >= 0]
            kept.append(own[top_k(-alike, share)])
        return Selection.prune(with_separators(tokens, torch.cat(kept), budget), n)

    def _as_released(self, rows: Tensor, opening: Tensor) -> tuple[Tensor, Tensor]:
        """The rows [T, P] without a frame that the code loses, and `opening` [T] with the one it leaves whole."""
        frames = len(rows)
        if frames <= WINDOW:
            raise ValueError(
                f'windows="released" needs more than {WINDOW} frames, this video has {frames}: the released code ends '
                'in an error there; use windows="paper".'
            )
        if frames % 2:
            rows = torch.cat([rows[:-1], torch.full_like(rows[-1:], -1)])
        if frames % WINDOW == 0:
            opening[-2] = True
        return rows, opening


@dataclass(frozen=True, kw_only=True)
class Resting(ActiveMethod):
    """DyCoke's second stage: `keep` of the video's tokens are active in a decode step, from layer `first` on."""

    refresh: float = 0.9
    reset: bool = False
    modality = ("video",)

    @property
    def title(self) -> str:
        return "dycoke"

    def stale(self, before: Tensor, now: Tensor) -> Tensor:
        return F.cosine_similarity(before, now, dim=1) < self.refresh

    def reused(self, active: Tensor, visual: Tensor) -> Tensor:
        return visual if self.reset else active
