"""PatchMethod: base of the methods that leave out patches whose pixels others show already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.budget import token_count
from vtc.checks import check_number
from vtc.methods.base.method import top_k
from vtc.methods.base.pixels import PixelMethod
from vtc.selection import Selection
from vtc.signals import VisualTokens

METRICS = ("max", "mae", "rmse")


@dataclass(frozen=True, kw_only=True)
class PatchMethod(PixelMethod):
    """Base of methods of the stage `pixels` that predict each block of a picture from others.

    A block is what becomes one visual token: 2 x 2 patches of Qwen's towers, a patch of LLaVA-1.5's. What is predicted
    well leaves before the tower's first block; neither the tower nor the language model sees it.

    A new method overrides `errors(pixels)`, and `stays(pixels)` if its threshold does more than cut errors off.

    Args:
        keep: a budget, which is met exactly: the blocks with the largest errors stay. 1.0 = none: `tau` decides.
        tau: with keep=1.0, a block leaves if its error is at most this, in units of the brightest pixel; 0 = only exact
            repeats leave; None = nothing leaves.
        metric: how far a block is from another: "max" (the largest difference of two pixels), "mae" (the mean one) or
            "rmse" (the root of the mean square).
    """

    keep: int | float = 1.0
    tau: float | None = 0.0
    metric: str = "max"
    needs = ("grid",)
    exact_count = True
    place: ClassVar[str] = "every block stays where it was in the picture"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None:
            check_number(self.tau, "tau", 0, 1, what="a difference of pixels in [0, 1] (None = no threshold)")
        if self.tau and not self.by_threshold:
            raise ValueError(
                f"tau={self.tau} and keep={self.keep} of {self.title} both say how much stays: give one of them."
            )
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r} is not one of {', '.join(METRICS)}.")
        if self.by_threshold and self.tau is not None:
            object.__setattr__(self, "exact_count", False)  # the picture says how much stays

    @property
    def by_threshold(self) -> bool:
        """Whether `tau` decides, and no budget."""
        return self.keep == 1 and isinstance(self.keep, float)

    def keeps_all(self) -> bool:
        """Not where exact repeats leave, which needs no budget."""
        return self.tau is None

    def smaller(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        return grid

    def acts_on(self, grid: tuple[int, int, int]) -> bool:
        """Whether there is anything to do about a picture or video of `grid`, (t, h, w) in blocks."""
        return ("image" in self.modality or grid[0] > 1) and not (self.by_threshold and self.tau is None)

    def errors(self, pixels: Tensor) -> Tensor:
        """How badly each block is predicted, [t, h, w], infinity where nothing predicts it.

        Args:
            pixels: [t, h, w, P] in fp32, 0 = black and 1 = white. Where a block holds several frames P counts them all.
        """
        raise TypeError(f"{type(self).__name__} defines no errors(pixels): a PatchMethod needs one.")

    def stays(self, pixels: Tensor) -> Tensor:
        """Which blocks stay under the threshold `tau`, BoolTensor [t, h, w]."""
        assert self.tau is not None
        return self.errors(pixels) > self.tau

    def measured(self, pixels: Tensor) -> Tensor:
        """What `chosen` has to know of a picture: `stays` if the threshold decides, else `errors`."""
        return self.stays(pixels) if self.by_threshold else self.errors(pixels)

    def chosen(self, measured: Tensor, there: Tensor) -> Tensor:
        """Which blocks stay, BoolTensor [t, h, w].

        Args:
            measured: what `measured` returned. there: BoolTensor [t, h, w], the blocks that an earlier method has left.
        """
        if measured.dtype == torch.bool:
            return measured & there
        few = min(token_count(self.keep, there.numel()), int(there.sum()))
        return self.best(measured.masked_fill(~there, -torch.inf), few) & there

    def best(self, errors: Tensor, few: int) -> Tensor:
        """The `few` blocks with the largest errors, BoolTensor [t, h, w]; of equals the first ones."""
        found = torch.zeros(errors.numel(), dtype=torch.bool, device=errors.device)
        return found.index_fill_(0, top_k(errors.flatten(), few), True).view_as(errors)

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose among blocks of pixels: `tokens.features` [N, P] are the pixels themselves, of all of the grid."""
        n, grid = len(tokens.features), tokens.span.grid
        if not self.acts_on(grid):
            return Selection.identity(n, tokens.features.device)
        measured = self.measured(tokens.features.float().view(*grid, -1))
        kept = self.chosen(measured, torch.ones_like(measured, dtype=torch.bool))
        return Selection.prune(kept.flatten().nonzero()[:, 0], n, ascending=True)
