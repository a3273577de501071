"""What the vision tower's patches look like, before it has seen them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.pixel_blocks import bright
from vtc.models.family import Adapter
from vtc.models.tower import Tower, tower_for
from vtc.transfer import upload

LEVELS = 256
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as pictures are turned grey


@dataclass(frozen=True, eq=False)
class PatchPixels:
    """Pixels of one run of a vision tower, as its processor left them, for signals that are read from them.

    Attributes:
        pixels: crops [B, C, H, W], or packed patches [P, C * T * p * p].
        kept: BoolTensor [N] in main memory, the tokens whose packed patches are there; None = all.
    """

    model: nn.Module
    adapter: Adapter
    pixels: Tensor
    kept: Tensor | None = None

    def entropy(self) -> Tensor:
        """[N]: entropy in bits of each patch's grey levels, as the projector makes tokens of the patches (the mean)."""
        tower: Any = self.adapter.tower(self.model)
        facts = tower_for(tower)
        bits = entropy_of(self._packed(tower, facts) if facts.takes == "packed" else self._crops(tower, facts))
        if facts.takes != "packed":
            bits = bits.view(len(self.pixels), -1)
        else:
            bits = bits.view(-1, facts.packing(tower).merge ** 2).mean(dim=1)
            if self.kept is not None:
                at = upload(self.kept.nonzero()[:, 0], bits.device)
                bits = bits.new_zeros(len(self.kept)).index_copy(0, at, bits)
            bits = bits[None]
        return self.adapter.tokens_from_patches(self.model, bits, mean=True)

    def _packed(self, tower: Any, facts: Tower) -> Tensor:
        """[P, T * p * p] grey pixels in [0, 1]."""
        return _grey(bright(self.pixels.view(len(self.pixels), len(facts.mean), -1), facts, 1), 1)

    def _crops(self, tower: Any, facts: Tower) -> Tensor:
        """[B * T, p * p], patches row by row; what is left over at the right and at the bottom is no patch."""
        side = facts.patch_side(tower)
        grey = _grey(bright(self.pixels, facts, 1), 1)  # [B, H, W]
        return grey.unfold(1, side, side).unfold(2, side, side).flatten(3).flatten(0, 2)


def entropy_of(grey: Tensor) -> Tensor:
    """Entropy in bits of the grey levels in each row of pixels: [P, n] in [0, 1] -> [P].

    Example: a row that is half black and half white has 1 bit, one of 256 different levels 8.
    """
    level = (grey * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long()  # [P, n]
    count = torch.zeros(len(grey), LEVELS, device=grey.device)
    count.scatter_add_(1, level, torch.ones_like(grey))
    share = count / grey.shape[1]
    return -torch.special.xlogy(share, share).sum(dim=1) / math.log(2)


def _grey(pixels: Tensor, channels: int) -> Tensor:
    """Brightness of colours, the dimension `channels` gone."""
    shape = [1] * pixels.dim()
    shape[channels] = -1
    return (pixels * torch.tensor(_LUMA, device=pixels.device).view(shape)).sum(dim=channels)
