"""FlashVID: of each frame what is attended to and unlike the rest; what remains merges along trees through time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Paper, rest_of
from vtc.methods.fastv import FastV
from vtc.methods.shared.apart import most_apart
from vtc.methods.shared.clips import share_out
from vtc.methods.shared.inner import InnerMethod
from vtc.methods.shared.segmented import SegmentMethod
from vtc.methods.shared.trees import grow, mean_of_means
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class FlashVID(InnerMethod, SegmentMethod):
    """Attended, diverse tokens; trees of the rest.

    Of each frame tokens chosen by attention and diversity; the rest merges into what is like it one frame earlier.

    Source: arXiv 2602.08024, section 3, with the details of the released code. The clip is cut as in FastVID. Of a
    frame's share of the budget `alpha` is chosen (ADTS), farthest first in cosine distance, each distance times the
    candidate's received attention and, with `events`, its mean product with the mean features of the segment's frames.
    Of the others each links to the most similar one, anywhere, in the frame before, if their cosine exceeds `tau`
    (TSTM); trees of links become their mean, at their root. Roots of a frame are clustered to its share (DPC-KNN), a
    mean of means. `inner` adds the cut inside the language model. A table's ratio R there is `keep` of 1.25 R with
    `inner=0.3`, which is R on average over 28 layers.

    Deviations: counts are exact by largest remainders, where the code rounds frames up; links that would leave too few
    roots are not made, the least alike first, where the code raises the threshold; a chosen token is never chosen
    again, nor merged a second time (the code does both in segments of one frame and where weights are negative); no
    noise.

    Args:
        alpha: share of a frame's budget that is chosen for attention and diversity.
        tau: cosine above which a token merges into one of the frame before.
        scene: cosine of neighbouring frames below which the clip is cut.
        events: whether distances are weighed by the product with the segment's frames (the code's default), too.
        neighbours: k of DPC-KNN, never more than the clusters that are asked for.
        inner: share of what is left that stays inside the language model, 0.3 in the paper; None = all.
        layer: before which `inner` acts: 20 of the paper's 28, or any decoder layer or share of the depth.
    """

    name = "flashvid"
    keep: int | float = 0.25
    alpha: float = 0.7
    tau: float = 0.8
    scene: float = 0.9
    events: bool = True
    layer: int | float = 20 / 28
    positions_default = "compact"
    paper = Paper(
        "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging",
        "2602.08024",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.alpha, "alpha", 0, 1, what="a share of a frame's budget")
        check_number(self.tau, "tau", -1, 1, what="a cosine")
        check_number(self.scene, "scene", -1, 1, what="a cosine")

    def _inside(self, inner: float) -> FastV:
        return KeepInside(keep=self._left(inner), layers=(self.layer,), positions=self.positions)

    def select(self, tokens: VisualTokens) -> Selection:
        clip = self._clip(tokens, self.scene)
        x, chosen, rest, shares = clip.x, [clip.spare], list[Tensor](), list[int]()
        root = torch.arange(len(x), device=x.device)  # of the tree that each token is in
        for means, frames, counts in clip.segments:
            weight = clip.heard * (x @ means.mean(dim=0)) if self.events else clip.heard
            few, others = sum(counts), list[Tensor]()
            for frame, count in zip(frames, counts, strict=True):
                picks = most_apart(x[frame], weight[frame], math.ceil(self.alpha * count))
                chosen.append(frame[picks])
                others.append(frame[rest_of(picks, len(frame))])
                few -= len(picks)
            grow(root, x, others, self.tau, few)
            roots = [own[root[own] == own] for own in others]
            rest += roots
            shares += share_out(few, [len(own) for own in roots], [len(own) for own in roots])
        trees, centre = ops.segment_mean(x, root, len(x)), torch.full_like(root, -1)
        for own, share in zip(rest, shares, strict=True):
            if share:
                centres, member = ops.dpc_knn(trees[own], share, min(self.neighbours, share))
                centre[own] = own[centres[member]]
        alone = torch.cat(chosen)
        centre[alone] = alone
        return mean_of_means(root, centre)


@dataclass(frozen=True, kw_only=True)
class KeepInside(FastV):
    """FlashVID inside the language model: what the prompt's last token attends to."""

    modality = ("video",)

    @property
    def title(self) -> str:
        return "flashvid"
