"""SegmentMethod: a clip cut into segments, every frame with its even share of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.method import Method
from vtc.methods.shared.clips import frame_rows, share_out
from vtc.methods.shared.segments import cut, frame_means
from vtc.signals import VisualTokens


class Segment(NamedTuple):
    """Frames that belong together: mean features [T, D], the rows of the tokens of each, and how many each may keep."""

    means: Tensor
    frames: Sequence[Tensor]
    counts: Sequence[int]


class Clip(NamedTuple):
    """Features x [N, D] in fp32, received attention `heard` [N], and the separators that the budget leaves room for."""

    x: Tensor
    heard: Tensor
    segments: Sequence[Segment]
    spare: Tensor


@dataclass(frozen=True, kw_only=True)
class SegmentMethod(Method):
    """Base of methods that compress a clip segment by segment, by received attention.

    Args:
        segments: at least so many, as far as there are frames.
        neighbours: k of DPC-KNN.
    """

    segments: int = 8
    neighbours: int = 7
    needs = ("grid", "received_attention")
    merges = True
    modality = ("video",)
    scopes = ("clip",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.segments, "segments", 1, integer=True, what="a number of segments")
        check_number(self.neighbours, "neighbours", 1, integer=True, what="a number of tokens")

    def _clip(self, tokens: VisualTokens, alike: float) -> Clip:
        """The clip, cut (DySeg) where neighbouring frames have a cosine below `alike`."""
        rows, budget = frame_rows(tokens), self.count(tokens)
        x = tokens.features.detach().float().nan_to_num(0.0, 0.0, 0.0)
        means, frames = frame_means(x, rows), [row[row >= 0] for row in rows]
        sizes = [len(frame) for frame in frames]
        counts = share_out(budget, sizes, sizes)
        runs = cut(means, self.segments, alike)
        segments = [Segment(means[first:last], frames[first:last], counts[first:last]) for first, last in runs]
        spare = tokens.separators.nonzero()[:, 0][: max(0, budget - sum(sizes))]
        return Clip(x, tokens.signal("received_attention").sum(dim=0), segments, spare)
