"""Dominant tokens stay, contextual tokens absorb the rest: the merging rule that VisionZip and VisionDrop share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.methods.base.method import rest_of
from vtc.selection import Selection


def absorb(dominant: Tensor, few: int, keys: Tensor, separators: Tensor | None) -> Selection:
    """Keep `dominant` [M] of N tokens and merge the others into `few` >= 1 contextual ones, which come after them.

    Contextual targets are evenly spaced among the rest; every other token goes to the target whose key is most similar.
    A contextual token is its target plus the mean of what it absorbed, as both papers' code has it.

    Args:
        keys: [N, d]. separators: BoolTensor [N], newline embeddings: no part of the picture, dropped and not merged;
            None = there are none.
    """
    n, device = len(keys), dominant.device
    rest = rest_of(dominant, n)  # [R], raster order
    if separators is not None:
        patches = rest[~separators[rest]]
        rest = patches if len(patches) >= few else rest
    targets = rest[torch.arange(few, device=device) * (rest.numel() // few)]  # uniform stride
    unit = F.normalize(keys.float(), dim=-1)
    nearest = (unit[rest] @ unit[targets].T).argmax(dim=1)  # [R]
    source = torch.full((n,), -1, dtype=torch.long, device=device)
    source[rest] = nearest + dominant.numel()
    source[targets] = torch.arange(few, device=device) + dominant.numel()
    source[dominant] = torch.arange(dominant.numel(), device=device)
    # target + mean(absorbed): weight 1 for kept tokens, 1/count for the absorbed ones of each target
    used, outputs = source >= 0, dominant.numel() + few
    counted = torch.zeros(outputs + 1, dtype=torch.long, device=device)  # the last counts what is dropped
    counted.scatter_add_(0, torch.where(used, source, outputs), torch.ones_like(source))
    weight = torch.where(used, 1.0 / (counted - 1).clamp(min=1)[source.clamp(min=0)], 0.0)
    anchor = torch.cat([dominant, targets])
    return Selection(anchor, source, weight.index_fill_(0, anchor, 1.0))
