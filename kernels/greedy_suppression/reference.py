"""Greedy choice by weight that passes over what is like a chosen one (non-maximum suppression)."""

import torch
from torch import Tensor

from vtc.kernels.greedy_diversity.reference import cosines
from vtc.kernels.greedy_suppression import lazy
from vtc.kernels.pictures import behind, ranks


def greedy_suppression(
    features: Tensor,
    k: int,
    weight: Tensor,
    threshold: Tensor,
    group: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """features [B, N, D], weight [B, N], threshold [B] -> (LongTensor [B, k], LongTensor [B]): in order of selection,
    and how many of them are like none before.

    By falling weight, every token is chosen that has a cosine above the threshold with no chosen one; group [B, N] says
    which tokens are compared at all, those of equal number. When there are no more, those passed over follow, by
    weight, too. Ties go to the lowest index, a weight of NaN is lowest. A zero row, or one that holds NaN or infinity,
    is like nothing (cosine 0). Rows behind a picture's own length come last.
    """
    choose = lazy.greedy_suppression if features.device.type == "cpu" else step_by_step  # lazy ones wait for a GPU
    return choose(features, k, weight, threshold, group, lengths)


def step_by_step(
    features: Tensor, k: int, weight: Tensor, threshold: Tensor, group: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition, all pictures at once: arguments as above, shapes [B, N, ...]."""
    b, n = features.shape[:2]
    like = cosines(features) > threshold[:, None, None]
    if group is not None:
        like &= group[:, :, None] == group[:, None, :]
    last = behind(features, lengths)
    place = ranks(torch.where(last < 0, torch.nan, weight.float()))  # the order of all; those passed over n later
    place = torch.where(last < 0, 2 * n - last.long(), place)
    chosen = torch.empty(b, k, dtype=torch.long, device=features.device)
    apart = torch.zeros(b, dtype=torch.long, device=features.device)
    for step in range(k):
        first, pick = place.min(dim=1, keepdim=True)  # all are different
        chosen[:, step : step + 1] = pick
        free = first < n
        alike = like.gather(1, pick[..., None].expand(-1, -1, n))[:, 0]
        place = torch.where(alike & free & (place < n), place + n, place).scatter(1, pick, 4 * n)
        apart += free[:, 0]
    return chosen, apart
