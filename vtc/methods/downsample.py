"""A smaller picture: the baseline that everybody uses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vtc.budget import fitted_frames, token_count
from vtc.methods.base.index import Paper
from vtc.methods.base.pixels import PixelMethod


@dataclass(frozen=True, kw_only=True)
class Downsample(PixelMethod):
    """The whole picture, in fewer pixels.

    The largest size whose grid has at most `keep` tokens: VTC-Bench's baseline, which beats many methods at equal
    tokens and saves time in the vision tower, too. Of a video all frames stay, with fewer pixels each, and one token
    per time step at least. As the proportions of the picture are kept, a grid may have fewer tokens than asked for:
    12 x 16 tokens become 7 x 9 for a budget of 64.

    Source: arXiv 2510.07143, where figure 1 sets it beside five methods; which size is the largest that fits, and how
    clips are made smaller, is ours.

    Wrapped around a model it resizes what the processor has made, which towers of packed patches (Qwen's) allow; for
    the others `vtc.downsample(picture, processor, keep)` does it before the processor, as `vtc eval`, `vtc ask` and the
    demo do for all.
    """

    name = "downsample"
    paper = Paper(
        "Are We Using the Right Benchmark: An Evaluation Framework for Visual Token Compression Methods", "2510.07143"
    )

    def smaller(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        return fitted_frames(grid, token_count(self.keep, math.prod(grid)))
