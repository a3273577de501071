"""FastVID: segments of like frames; in each the tokens that are attended to, and a few density peaks for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Paper, rest_of, top_k
from vtc.methods.shared.clips import absorbed, share_out
from vtc.methods.shared.segmented import SegmentMethod
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class FastVID(SegmentMethod):
    """Salient tokens; density peaks take the rest.

    Of each frame what the tower attends to; the rest of a segment merges into density peaks of a few of its frames.

    Source: arXiv 2503.11187, section 3, with the details of the released code. A clip is cut (DySeg) where neighbouring
    frames have a cosine below `tau`, and at the least alike ones until there are `segments`. Each frame gives its even
    share of the budget, of which `context` is handed to the segment's anchor frames, every `step`-th counted from its
    end. Their density peaks (DPC-KNN) among the tokens that are not salient take in all others of the segment, each the
    most similar (cosine): w of the peak, 1 - w of the mean of all that are its own, itself among them, where w is
    1 / (1 + their number), at least `beta`.

    Deviations: a frame is told by the mean of its tokens, where the code reads SigLIP's pooled output, and salience is
    received attention, where it reads that of SigLIP's pooling probe (of Qwen's towers it is as here). A token joins
    one peak of its segment; in the code, where a segment has several anchor frames, one of each, so that it counts
    several times. Counts are exact by largest remainders, without noise. Where anchor frames have fewer tokens left
    than the segment's budget, all its frames are anchors.

    Args:
        tau: cosine of neighbouring frames below which the clip is cut; 0.84 for Qwen2.5-VL in the code.
        context: share of a frame's budget that goes to density peaks.
        step: of how many frames of a segment one is an anchor.
        beta: least weight of a peak itself.
    """

    name = "fastvid"
    keep: int | float = 0.25
    tau: float = 0.9
    context: float = 0.4
    step: int = 4
    beta: float = 0.6
    neighbours: int = 4
    paper = Paper("FastVID: Dynamic Density Pruning for Fast Video Large Language Models", "2503.11187")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.tau, "tau", -1, 1, what="a cosine")
        check_number(self.context, "context", 0, 1, what="a share of a frame's budget")
        check_number(self.step, "step", 1, integer=True, what="a number of frames")
        check_number(self.beta, "beta", 0, 1, what="the least weight of a density peak itself")

    def select(self, tokens: VisualTokens) -> Selection:
        clip = self._clip(tokens, self.tau)
        x, spare = clip.x, clip.spare
        target = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
        for _, frames, counts in clip.segments:
            few = [int(self.context * count) for count in counts]
            members = list(zip(frames, counts, few, strict=True))
            best = [top_k(clip.heard[frame], count - less) for frame, count, less in members]
            salient = torch.cat([frame[top] for frame, top in zip(frames, best, strict=True)])
            rest = [frame[rest_of(top, len(frame))] for frame, top in zip(frames, best, strict=True)]
            target[salient] = salient
            peaks = self._peaks(x, rest, sum(few))
            if len(peaks):
                others = torch.cat(rest)
                target[others] = peaks[ops.nearest(x[others][None], x[peaks][None])[0]]
                target[peaks] = peaks
        target[spare] = spare
        return self._weighed(target)

    def _peaks(self, x: Tensor, rest: list[Tensor], count: int) -> Tensor:
        """Of a segment's tokens that are not salient, `rest` frame by frame, the `count` density peaks: LongTensor."""
        anchors = rest[::-1][:: self.step]
        if sum(map(len, anchors)) < count:
            anchors = rest
        shares = share_out(count, [1.0] * len(anchors), [len(own) for own in anchors])
        found = [
            own[ops.dpc_knn(x[own], share, self.neighbours)[0]]
            for own, share in zip(anchors, shares, strict=True)
            if share
        ]
        return torch.cat(found) if found else rest[0][:0]

    def _weighed(self, target: Tensor) -> Selection:
        """What becomes of `target` [N], the token that each one joins (-1 = none)."""
        found, used = absorbed(target), target >= 0
        size = torch.zeros(len(target), device=target.device).scatter_add_(0, target[used], used[used].float())
        size = size[target.clamp(min=0)].clamp(min=1)  # of the output that each is a part of
        own = (1 / (size + 1)).clamp(min=self.beta)
        weight = (1 - own) / size + torch.where(target == torch.arange(len(target), device=target.device), own, 0.0)
        return Selection(found.anchor, found.source, torch.where(used, weight.masked_fill(size == 1, 1.0), 0.0))
