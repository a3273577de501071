"""Greedy coverage that works few gains out anew, exact, for CPUs."""

import torch
from torch import Tensor

from vtc.kernels.pictures import at_least_zero, one_by_one

BLOCK = 64  # candidates whose gains are brought up to date at once


def greedy_coverage(cover: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """As the reference: cover [B, N, M] -> LongTensor [B, k]."""
    return one_by_one(_choose, k, lengths, cover, weight)[0]


def _choose(cover: Tensor, weight: Tensor | None, k: int) -> Tensor:
    """LongTensor [k] of one picture's cover [N, M], lazily (Minoux 1978).

    What a candidate adds only falls as others are chosen, so what it added once is a bound. Each step brings up to date
    the candidates with the highest bounds until the highest of all is one of them. Rounding breaks no bound: a
    difference, a maximum and a sum in a fixed order that are rounded at every step still only fall.

    Example: bounds 9 7 4 of three candidates, after a choice. The first is brought up to date and adds 5 now: less than
    7, so the second is, too. It adds 6, and is chosen; the third has not been looked at.
    """
    cover = cover.float()
    if not bool(cover.sum().isfinite()):
        cover = torch.where(cover.isfinite(), cover, 0.0)
    worth = None if weight is None else at_least_zero(weight)
    covered = cover.new_zeros(cover.shape[1])
    bound = gains(cover, covered, worth)
    looked = [0] * len(cover)  # the step at which each was last looked at
    chosen: list[int] = []
    for step in range(k):
        pick = int(bound.argmax())
        while looked[pick] < step:
            high = bound.topk(min(BLOCK, len(bound))).indices
            high[-1] = pick  # of equal ones `topk` takes any
            bound[high] = bound[high].minimum(gains(cover[high], covered, None if worth is None else worth[high]))
            for i in high.tolist():
                looked[i] = step
            pick = int(bound.argmax())
        chosen.append(pick)
        torch.maximum(covered, cover[pick], out=covered)
        bound[pick] = -torch.inf
    return torch.tensor(chosen, device=cover.device)


def gains(cover: Tensor, covered: Tensor, weight: Tensor | None) -> Tensor:
    """[N]: what each row of cover [N, M] adds to covered [M], times weight [N]."""
    added = (cover - covered).clamp_(min=0).sum(dim=1)
    return added if weight is None else added * weight
