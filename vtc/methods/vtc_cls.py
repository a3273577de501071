"""VTC-CLS: keep what the vision tower's CLS token looks at, summed over its late layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.encoder import DroppingMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class VTCCLS(DroppingMethod):
    """What the tower's CLS token attends to.

    Top-k by CLS attention, summed over an ensemble of vision-tower layers.

    Source: arXiv 2412.05819, section 3 (K layers counted back from the one the features are taken from; equal
    weights). The released code starts at layer 16 of CLIP-L's 24, which is the default here, as a fraction of depth.
    Paper and code know images of one crop only: that each crop of an any-resolution image, and each frame, chooses for
    itself is our extension, as the CLS token of one crop says nothing about another (`scope`). So is dropping inside
    the tower (`stage`), where the ensemble ends at the block at which patches go.

    Args:
        start_layer: first layer of the ensemble: an int (0-based) or a fraction in [0, 1) of the tower's depth. The
            last one is the layer whose output feeds the projector.
    """

    name = "vtc-cls"
    keep: int | float = 128
    start_layer: int | float = 2 / 3
    needs = ("cls_attention",)
    stacks = True
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper("[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", "2412.05819")

    def __post_init__(self) -> None:
        super().__post_init__()
        what = "a layer's number (an int), or a share of the tower's depth in [0, 1) (a float)"
        if isinstance(self.start_layer, int):
            check_number(self.start_layer, "start_layer", 0, integer=True, what=what)
        else:
            check_number(self.start_layer, "start_layer", 0, below=1, what=what)

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        start = self.start_layer
        first = start if isinstance(start, int) else min(depth - 1, round(start * depth))
        if first >= depth:
            raise ValueError(f"start_layer={start} is outside the vision tower's {depth} layers.")
        return tuple(range(min(first, feature_layer), feature_layer + 1))

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal("cls_attention").sum(dim=-2)  # [L, N] -> [N]
