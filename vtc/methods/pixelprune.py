"""PixelPrune: blocks of pixels that their neighbours show already never enter the vision tower."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.methods.base.index import Paper
from vtc.methods.base.patches import PatchMethod
from vtc.methods.shared.coding import anchored, edge_errors, neighbours


@dataclass(frozen=True, kw_only=True)
class PixelPrune(PatchMethod):
    """Pixels that neighbours do not show.

    Predictive coding before the vision tower: each block is told from the one on its left or the one above it by the
    edge rule of JPEG-LS, and leaves if that is right. Of a video every time step is a picture for itself. What stays
    keeps its position, and the tower's attention sees nothing else.

    Source: arXiv 2604.00886, its algorithm as the code has it (OPPO-Mente-Lab/PixelPrune). With `tau` as there: 0
    compares the picture with itself; above it, blocks are compared with what a decoder would have at its
    neighbours' places, so that no error exceeds tau. Ours: a budget (`keep`), which ranks blocks by the error of
    the rule for exact repeats, so that these leave first; of a video both frames of a patch are compared, where the
    code looks at pictures only. Pixels are as the tower is given them (in its precision), and are scaled by the
    mean and deviation that the model's published processor has.
    """

    name = "pixelprune"
    paper = Paper("PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding", "2604.00886")

    def errors(self, pixels: Tensor) -> Tensor:
        return edge_errors(*neighbours(pixels, self.metric))

    def stays(self, pixels: Tensor) -> Tensor:
        return anchored(pixels, self.tau, self.metric) if self.tau else super().stays(pixels)
