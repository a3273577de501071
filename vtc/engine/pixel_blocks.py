"""Pictures as blocks of pixels, for methods that choose among them before the vision tower."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vtc.methods.base.patches import PatchMethod
from vtc.models.tower import Packing, Tower
from vtc.reports import Stopwatch

Grid = tuple[int, int, int]  # (t, h, w) in blocks


class Chosen(NamedTuple):
    """What some methods left of the pictures of one run of the tower.

    Attributes:
        kept: BoolTensor [methods, N] in main memory, the tokens of all pictures that are left after each of them.
        ms: how long each has taken.
    """

    kept: Tensor
    ms: tuple[float, ...]

    @property
    def last(self) -> Tensor:
        """BoolTensor [N], the tokens that are left after all of them."""
        return self.kept[-1]


def choose(
    methods: Sequence[PatchMethod], grids: Sequence[Grid], blocks: Callable[[int], Tensor], device: torch.device
) -> Chosen:
    """Ask the methods, one after another, which tokens of a run's pictures are to be there.

    Each judges whole pictures, as if it were alone; it chooses among what those before it have left. The device is
    waited for once per method.

    Args:
        grids: of each picture. blocks: number of a picture -> its pixels on `device`, [t, h, w, P] in [0, 1].
    """
    there = [torch.ones(grid, dtype=torch.bool) for grid in grids]
    kept, times = [], []
    for method in methods:
        watch = Stopwatch(device)
        asked = [i for i, grid in enumerate(grids) if method.acts_on(grid)]
        measured = [method.measured(blocks(i)).flatten() for i in asked]
        found = torch.cat(measured).cpu().split([x.numel() for x in measured]) if asked else ()
        for i, own in zip(asked, found, strict=True):
            there[i] = method.chosen(own.view(grids[i]), there[i])
        kept.append(torch.cat([own.flatten() for own in there]))
        times.append(watch.stop().ms)
    return Chosen(torch.stack(kept), tuple(times))


def choose_packed(
    methods: Sequence[PatchMethod], pixels: Tensor, grids: Sequence[Sequence[int]], packing: Packing, facts: Tower
) -> Chosen:
    """`choose` of packed patches [P, C * T * p * p] of pictures of `grids`, (t, h, w) in patches."""
    small = [(t, h // packing.merge, w // packing.merge) for t, h, w in grids]
    parts = pixels.detach().split([math.prod(grid) for grid in grids])

    def blocks(i: int) -> Tensor:
        channels = parts[i].view(*small[i], packing.merge**2, len(facts.mean), -1)  # T * p * p of each
        return bright(channels, facts, -2).flatten(3)

    return choose(methods, small, blocks, pixels.device)


def choose_crops(methods: Sequence[PatchMethod], pixels: Tensor, side: int, facts: Tower) -> Chosen:
    """`choose` of crops [B, C, H, W] that are cut into blocks of `side` x `side` pixels."""
    h, w = pixels.shape[2] // side, pixels.shape[3] // side

    def blocks(i: int) -> Tensor:
        cells = pixels[i, :, : h * side, : w * side].detach().unflatten(2, (w, side)).unflatten(1, (h, side))
        return bright(cells, facts, 0).permute(1, 3, 0, 2, 4).flatten(2)[None]  # [1, h, w, C * side * side]

    return choose(methods, [(1, h, w)] * len(pixels), blocks, pixels.device)


def bright(pixels: Tensor, facts: Tower, channels: int) -> Tensor:
    """Pixels as they were before the processor normalised them, 0 = black and 1 = white, in fp32."""
    shape = [1] * pixels.dim()
    shape[channels] = -1
    mean, deviation = (torch.tensor(x, device=pixels.device).view(shape) for x in (facts.mean, facts.deviation))
    return torch.addcmul(mean, pixels.float(), deviation)
