"""Frame dedupe: of a video, blocks of pixels that the frames before show already never enter the vision tower."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.methods.base.patches import PatchMethod
from vtc.methods.shared.coding import anchored, distance, edge_errors, neighbours, repeated

FIRST = ("whole", "coded")


@dataclass(frozen=True, kw_only=True)
class FrameDedupe(PatchMethod):
    """Pixels that the frame before did not show.

    The mechanism of `pixelprune` along time: a block is told from the one at its place a time step earlier, and leaves
    if that is right. Nothing is published under this name; it is what `evs` does, before the vision tower instead of
    behind it. A time step is what the tower makes a row of tokens of (two frames of Qwen's). Above tau = 0 a block is
    compared with the last one that stayed at its place, so that no error exceeds tau.

    Pictures, and videos of one time step, stay as they are.

    Args:
        first: the first time step, which nothing precedes: "whole", it stays as far as the budget goes, and its blocks
            leave in the order of pixelprune's errors if that is not all of it; "coded", its blocks are judged among
            all others, by what pixelprune makes of them.
    """

    name = "framededupe"
    modality = ("video",)
    first: str = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first not in FIRST:
            raise ValueError(f"first={self.first!r} is not one of {', '.join(FIRST)}.")

    def errors(self, pixels: Tensor) -> Tensor:
        opening = edge_errors(*neighbours(pixels[:1], self.metric))
        return torch.cat([opening, distance(pixels[1:], pixels[:-1], self.metric)])

    def stays(self, pixels: Tensor) -> Tensor:
        assert self.tau is not None
        found = repeated(pixels, self.tau, self.metric)
        if self.first == "coded":
            found[:1] = anchored(pixels[:1], self.tau, self.metric)
        return found

    def best(self, errors: Tensor, few: int) -> Tensor:
        if self.first == "coded":
            return super().best(errors, few)
        opening = min(few, int((errors[0] > -torch.inf).sum()))
        return torch.cat([super().best(errors[:1], opening), super().best(errors[1:], few - opening)])
