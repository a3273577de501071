"""Tokens of a frame that are far apart, each distance by how much the candidate weighs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def most_apart(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """Farthest first among rows x [P, D] by 1 - cosine, times the weight [P] of who is to be chosen: ascending
    LongTensor [count]. The first one is the farthest from its nearest other; ties go to the lowest index.

    Example: three rows at 0, 10 and 90 degrees, weights 1, 1 and .1. Nearest others are .015, .015 and .83 away, times
    the weights .015, .015 and .083: the third is first. From it the others are 1 and .83 away: the first is second.
    """
    if count in (0, len(x)):
        return torch.arange(count, device=x.device)
    unit = F.normalize(x, dim=-1)
    apart, lowest = 1 - unit @ unit.T, torch.finfo(weight.dtype).min
    nearest = apart.clone().fill_diagonal_(2.0).amin(dim=1)
    chosen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for step in range(count):
        place = (nearest * weight).nan_to_num(lowest, neginf=lowest).masked_fill(chosen, -torch.inf).argmax()
        chosen[place] = True
        nearest = torch.minimum(nearest, apart[place]) if step else apart[place]
    return chosen.nonzero()[:, 0]
