"""What predictive coding of pixels shares: blocks told from their neighbours, as lossless image coders do it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def distance(one: Tensor, other: Tensor, metric: str) -> Tensor:
    """How far blocks [..., P] are from others [..., P]: [...]; see `PatchMethod.metric`."""
    apart = one - other
    if metric == "max":
        return apart.abs().amax(dim=-1)
    return apart.abs().mean(dim=-1) if metric == "mae" else apart.square().mean(dim=-1).sqrt()


def neighbours(pixels: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Of each block [t, h, w, P] how far it is from the one on its left, and from the one above it: two [t, h, w],
    infinity where there is none."""
    left = pixels.new_full(pixels.shape[:3], torch.inf)
    above = left.clone()
    left[:, :, 1:] = distance(pixels[:, :, 1:], pixels[:, :, :-1], metric)
    above[:, 1:] = distance(pixels[:, 1:], pixels[:, :-1], metric)
    return left, above


def edge_errors(left: Tensor, above: Tensor) -> Tensor:
    """How far each block is from its prediction, [t, h, w], from the distances of `neighbours`.

    The edge rule of LOCO-I (JPEG-LS), with "equal" for "similar": with A on the left of block X, B above it and C above
    A, X is told from B if C equals A and does not equal B (an edge runs down between them), else from A. Blocks of the
    first row are told from A, those of the first column from B, the first of all from nothing.
    """
    down, across = left.new_full(left.shape, torch.inf), left.new_full(left.shape, torch.inf)
    down[:, :, 1:] = above[:, :, :-1]  # C and A
    across[:, 1:] = left[:, :-1]  # C and B
    from_above = (down == 0) & (across > 0)
    from_above[:, :, 0], from_above[:, 0] = True, False
    return torch.where(from_above, above, left)


def anchored(pixels: Tensor, tau: float, metric: str) -> Tensor:
    """Which blocks [t, h, w, P] stay if those that differ by at most `tau` from their prediction leave: BoolTensor.

    The prediction is that of `edge_errors`, with "at most tau apart" for "equal", and A, B, C are what a decoder has at
    their places: a block that leaves is shown by the one it was told from. So nothing ever differs by more than tau
    from what stands for it, however far the copies run. Blocks of one anti-diagonal do not depend on each other.

    Example: one row of brightness 0, .1, .2, .3 with tau = .15: .1 is told from 0 and leaves, .2 differs from it by
    more and stays, .3 leaves.
    """
    t, h, w, _ = pixels.shape
    flat = pixels.view(t, h * w, -1)
    time = torch.arange(t, device=pixels.device)[:, None]
    stand = torch.arange(h * w, device=pixels.device).repeat(t, 1)  # [t, h * w], the block that shows each place
    for place, row, column in _diagonals(h, w, pixels.device):
        a, b, c = (stand[:, (place - back).clamp(min=0)] for back in (1, w, w + 1))  # [t, n]
        shown = [flat[time, x] for x in (a, b, c)]
        near = [distance(shown[2], other, metric) <= tau for other in shown[:2]]
        from_above = ((near[0] & ~near[1]) | (column == 0)) & (row > 0)
        guess = torch.where(from_above, b, a)
        error = distance(flat[:, place], torch.where(from_above[..., None], shown[1], shown[0]), metric)
        stand[:, place] = torch.where(error <= tau, guess, place)
    return (stand == torch.arange(h * w, device=pixels.device)).view(t, h, w)


def _diagonals(h: int, w: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Place, row and column [n] of the blocks of each anti-diagonal of a grid, but for the first block."""
    for number in range(1, h + w - 1):
        row = torch.arange(max(0, number - w + 1), min(h - 1, number) + 1, device=device)
        yield row * w + number - row, row, number - row


def repeated(pixels: Tensor, tau: float, metric: str) -> Tensor:
    """Which blocks [t, h, w, P] of a video stay if those leave that differ by at most `tau` from the last one that
    stayed at their place: BoolTensor; all of the first time step."""
    found, shown = [torch.ones(pixels.shape[1:3], dtype=torch.bool, device=pixels.device)], pixels[0]
    for step in pixels[1:]:
        found.append(distance(step, shown, metric) > tau)
        shown = torch.where(found[-1][..., None], step, shown)
    return torch.stack(found)
