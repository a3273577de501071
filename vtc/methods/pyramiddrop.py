"""PyramidDrop: half of the visual tokens go at each of a few depths."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(LayerMethod):
    """What the prompt attends to, halved in stages.

    Keeps 1/2, 1/4 and 1/8 of the tokens after a quarter, a half and three quarters of the layers.

    Source: arXiv 2410.17247, section 3.2. The score is the attention of the last instruction token, with the queries
    and keys of the layer that comes next. Counts are rounded, where the released code rounds down: of 577 tokens it
    keeps `keeps=(288, 144, 72)`. Kept tokens are renumbered, as there.
    """

    name = "pyramiddrop"
    keep: int | float = 0.125
    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    shape = (0.5, 0.25, 0.125)
    needs = ("last_attention",)
    stacks = True
    query_aware = True
    positions_default = "compact"
    paper = Paper(
        "PyramidDrop: Accelerating Your Large Vision-Language Models via Visual Redundancy Reduction", "2410.17247"
    )

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal("last_attention")
