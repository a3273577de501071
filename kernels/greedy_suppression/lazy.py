"""Non-maximum suppression block by block of candidates, until there are enough, for CPUs."""

import torch
from torch import Tensor

from vtc.kernels.greedy_diversity.reference import unit
from vtc.kernels.pictures import one_by_one

BLOCK = 256  # candidates that are compared at once


def greedy_suppression(
    features: Tensor,
    k: int,
    weight: Tensor,
    threshold: Tensor,
    group: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As the reference: features [B, N, D] -> (LongTensor [B, k], LongTensor [B])."""
    found = []

    def choose(features: Tensor, weight: Tensor, group: Tensor | None, k: int) -> Tensor:
        chosen, apart = _choose(features, weight, float(threshold[len(found)]), group, k)
        found.append(apart)
        return chosen

    chosen, _ = one_by_one(choose, k, lengths, features, weight, group)
    return chosen, torch.tensor(found, device=features.device)


def _choose(features: Tensor, weight: Tensor, threshold: float, group: Tensor | None, k: int) -> tuple[Tensor, int]:
    """(LongTensor [k], how many are apart) of one picture: BLOCK candidates at a time, first against what is chosen."""
    order = weight.detach().float().neg().argsort(stable=True)  # upwards, as that puts NaN last
    group = torch.zeros(len(order), dtype=torch.long, device=order.device) if group is None else group
    apart, passed = order[:0], []
    kept = unit(features[apart])
    for block in order.split(BLOCK):
        rows, of = unit(features[block]), group[block]
        taken = ((rows @ kept.T > threshold) & (of[:, None] == group[apart])).any(dim=1)
        like = (rows @ rows.T > threshold) & (of[:, None] == of)
        free = []
        for i in range(len(block)):
            if not taken[i]:
                free.append(i)
                taken |= like[i]
        new = torch.tensor(free, dtype=torch.long, device=block.device)
        gone = torch.ones_like(taken).index_fill_(0, new, False)
        apart, kept = torch.cat([apart, block[new]]), torch.cat([kept, rows[new]])
        passed.append(block[gone])
        if len(apart) >= k:
            return apart[:k], k
    return torch.cat([apart, *passed])[:k], len(apart)
