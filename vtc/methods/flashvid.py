"""FlashVID: of each frame what is attended to and unlike the rest; what remains merges along trees through time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.budget import check_layer
from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper, rest_of
from vtc.methods.fastv import FastV
from vtc.methods.shared.clips import frame_rows, share_out
from vtc.methods.shared.segments import cut, frame_means
from vtc.methods.shared.trees import grow, mean_of_means
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class FlashVID(Method):
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
        segments: at least so many, as far as there are frames.
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
    segments: int = 8
    scene: float = 0.9
    events: bool = True
    neighbours: int = 7
    inner: float | None = None
    layer: int | float = 20 / 28
    needs = ("grid", "received_attention")
    merges = True
    modality = ("video",)
    scopes = ("clip",)
    positions_default = "compact"
    paper = Paper(
        "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token Merging",
        "2602.08024",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.alpha, "alpha", 0, 1, what="a share of a frame's budget")
        check_number(self.tau, "tau", -1, 1, what="a cosine")
        check_number(self.segments, "segments", 1, integer=True, what="a number of segments")
        check_number(self.scene, "scene", -1, 1, what="a cosine")
        check_number(self.neighbours, "neighbours", 1, integer=True, what="a number of tokens")
        if self.inner is not None:
            check_number(self.inner, "inner", above=0, below=1, what="the share that stays (None = all do)")
        check_layer(self.layer, "layer")
        object.__setattr__(self, "query_aware", self.inner is not None)
        object.__setattr__(self, "exact_count", self.inner is None)

    def parts(self) -> tuple[Method, ...]:
        if self.inner is None:
            return (self,)
        keep = self.keep * self.inner
        inner = KeepInside(
            keep=keep if isinstance(self.keep, float) else max(1, round(keep)),
            layers=(self.layer,),
            positions=self.positions,
        )
        return replace(self, inner=None), inner

    def keeps_all(self) -> bool:
        """Not if a share goes inside the language model, whatever the budget."""
        return self.inner is None

    def select(self, tokens: VisualTokens) -> Selection:
        rows, budget = frame_rows(tokens), self.count(tokens)
        x = tokens.features.detach().float().nan_to_num(0.0, 0.0, 0.0)
        means, heard = frame_means(x, rows), tokens.signal("received_attention").sum(dim=0)
        frames = [row[row >= 0] for row in rows]
        sizes = [len(frame) for frame in frames]
        counts = share_out(budget, sizes, sizes)
        root = torch.arange(len(x), device=rows.device)  # of the tree that each token is in
        chosen, rest, shares = list[Tensor](), list[Tensor](), list[int]()
        for first, last in cut(means, self.segments, self.scene):
            weight = heard * (x @ means[first:last].mean(dim=0)) if self.events else heard
            others: list[Tensor] = []
            for frame, count in zip(frames[first:last], counts[first:last], strict=True):
                picks = most_apart(x[frame], weight[frame], math.ceil(self.alpha * count))
                chosen.append(frame[picks])
                others.append(frame[rest_of(picks, len(frame))])
            few = sum(counts[first:last]) - sum(len(own) for own in chosen[first:last])
            grow(root, x, others, self.tau, few)
            roots = [own[root[own] == own] for own in others]
            rest += roots
            shares += share_out(few, [len(own) for own in roots], [len(own) for own in roots])
        trees = ops.segment_mean(x, root, len(x))
        centre = torch.full_like(root, -1)
        for own, share in zip(rest, shares, strict=True):
            if share:
                centres, member = ops.dpc_knn(trees[own], share, min(self.neighbours, share))
                centre[own] = own[centres[member]]
        spare = tokens.separators.nonzero()[:, 0][: max(0, budget - sum(sizes))]
        alone = torch.cat([*chosen, spare])
        centre[alone] = alone
        return mean_of_means(root, centre)


@dataclass(frozen=True, kw_only=True)
class KeepInside(FastV):
    """FlashVID inside the language model: what the prompt's last token attends to."""

    modality = ("video",)

    @property
    def title(self) -> str:
        return "flashvid"


def most_apart(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """Farthest first among rows x [P, D] by 1 - cosine, times the weight [P] of who is to be chosen: ascending
    LongTensor [count]. The first one is the farthest from its nearest other; ties go to the lowest index.

    Example: three rows at 0, 10 and 90 degrees, weights 1, 1 and .1. Nearest others are .015, .015 and .83 away, times
    the weights .015, .015 and .083: the third is first. From it the others are 1 and .83 away: the first is second.
    """
    if count in (0, len(x)):
        return torch.arange(count, device=x.device)
    unit = F.normalize(x, dim=-1)
    apart, lowest = 1 - unit @ unit.T, torch.finfo(weight.dtype).min
    nearest = apart.clone().fill_diagonal_(2.0).amin(dim=1)
    chosen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for step in range(count):
        place = (nearest * weight).nan_to_num(lowest, neginf=lowest).masked_fill(chosen, -torch.inf).argmax()
        chosen[place] = True
        nearest = torch.minimum(nearest, apart[place]) if step else apart[place]
    return chosen.nonzero()[:, 0]
