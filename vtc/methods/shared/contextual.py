"""Dominant tokens stay, contextual tokens absorb the rest: the merging rule that VisionZip and VisionDrop share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.selection import Selection


def absorb(dominant: Tensor, few: int, keys: Tensor, separators: Tensor) -> Selection:
    """Keep `dominant` [M] of N tokens and merge the others into `few` >= 1 contextual ones, which come after them.

    Contextual targets are evenly spaced among the rest; every other token goes to the target whose key is most similar.
    A contextual token is its target plus the mean of what it absorbed, as both papers' code has it.

    Args:
        keys: [N, d]. separators: BoolTensor [N], newline embeddings: no part of the picture, dropped and not merged.
    """
    n, device = len(keys), dominant.device
    rest = torch.ones(n, dtype=torch.bool, device=device)
    rest[dominant] = False
    patches = rest & ~separators
    if int(patches.sum()) >= few:
        rest = patches
    rest = rest.nonzero().squeeze(1)  # [R], raster order
    targets = rest[torch.arange(few, device=device) * (rest.numel() // few)]  # uniform stride
    unit = F.normalize(keys.float(), dim=-1)
    nearest = (unit[rest] @ unit[targets].T).argmax(dim=1)  # [R]
    source = torch.full((n,), -1, dtype=torch.long, device=device)
    source[rest] = nearest + dominant.numel()
    source[targets] = torch.arange(few, device=device) + dominant.numel()
    source[dominant] = torch.arange(dominant.numel(), device=device)
    # target + mean(absorbed): weight 1 for kept tokens, 1/count for the absorbed ones of each target
    used = source >= 0
    absorbed = torch.bincount(source[used], minlength=dominant.numel() + few) - 1
    weight = torch.where(used, 1.0 / absorbed.clamp(min=1)[source.clamp(min=0)], 0.0)
    anchor = torch.cat([dominant, targets])
    weight[anchor] = 1.0
    return Selection(anchor, source, weight)
