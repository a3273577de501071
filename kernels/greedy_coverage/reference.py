"""Greedy coverage (facility location): the token that adds most to how well the chosen ones stand for everything."""

import torch
from torch import Tensor

from vtc.kernels.greedy_coverage import lazy
from vtc.kernels.pictures import at_least_zero, behind


def greedy_coverage(cover: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """cover [B, N, M], weight [B, N] or None, lengths [B] or None -> LongTensor [B, k], in order of selection.

    A target is covered as well as its best chosen candidate covers it, or 0. Every step takes the candidate whose gain,
    the sum over targets of what it adds, times its weight, is largest; ties go to the lowest index. A cover that is no
    number counts as 0, and so does a weight that is none or negative. Rows behind a picture's own length come last.
    """
    choose = lazy.greedy_coverage if cover.device.type == "cpu" else step_by_step  # lazy ones wait for a GPU
    return choose(cover, k, weight, lengths)


def step_by_step(cover: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """The definition, all pictures at once: arguments as above, shapes [B, N, ...]."""
    cover = torch.where(cover.isfinite(), cover.float(), 0.0)
    worth = None if weight is None else at_least_zero(weight)
    last = behind(cover, lengths)
    covered = cover.new_zeros(cover.shape[0], 1, cover.shape[2])
    chosen = torch.empty(len(cover), k, dtype=torch.long, device=cover.device)
    for step in range(k):
        gain = (cover - covered).clamp_(min=0).sum(dim=2)
        gain = gain if worth is None else gain * worth
        pick = torch.where(last < 0, last, gain).argmax(dim=1, keepdim=True)  # [B, 1]
        chosen[:, step : step + 1] = pick
        covered = covered.maximum(cover.gather(1, pick[..., None].expand_as(covered)))
        last = last.scatter(1, pick, -torch.inf)
    return chosen
