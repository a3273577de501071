"""Outliers among numbers: the Local Outlier Factor in one dimension, where nearest neighbours stand side by side."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 1.5  # beyond this factor a value counts as an outlier
GUARD = 1e-10  # added to distances: equal values lie infinitely dense


def outlier_factor(values: Tensor, neighbours: int) -> Tensor:
    """How much sparser the surroundings of each value are than those of its neighbours: [N] -> [N] in fp64.

    Source: Breunig et al., SIGMOD 2000, definitions 3 to 7, with exactly `neighbours` (k) neighbours, N - 1 at most:

        reach(p, o)  = max(distance of o to its own k-th neighbour, |p - o|)
        density(p)   = 1 / mean of reach(p, o) over the neighbours o of p
        factor(p)    = mean of density(o) over them / density(p)

    A value and its k nearest are k + 1 neighbours in sorted order, so of the k + 1 such windows that hold it that is
    taken whose farther end is nearest; of several (beyond equal values) the widest, which leaves out nobody who is
    nearer than that end.

    Example: k = 2, values 1 2 3 10: the windows are 1 2 3 for the first three, whose second neighbours are 2, 1 and 2
    away, and 2 3 10 for the last, 8 away. Densities 2/3 (reach 1 2), 1/2, 2/3, 1/7.5 (8 7), factors 0.875, 1.33, 0.875
    and 4.38.
    """
    n, k = len(values), min(neighbours, len(values) - 1)
    if k < 1:
        return values.new_ones(n, dtype=torch.float64)
    v, order = values.double().sort()
    here = torch.arange(n, device=v.device)
    first = here[:, None] + torch.arange(-k, 1, device=v.device)  # [N, k + 1], where windows begin
    inside = (first >= 0) & (first + k < n)
    first = first.clamp(0, n - 1 - k)
    width = torch.maximum(v[:, None] - v[first], v[first + k] - v[:, None]).masked_fill(~inside, torch.inf)
    far = width.amin(dim=1)  # distance to the k-th neighbour
    best = torch.where(width == far[:, None], v[first + k] - v[first], -1.0).argmax(dim=1)
    near = first.gather(1, best[:, None]) + torch.arange(k, device=v.device)
    near = near + (near >= here[:, None])  # [N, k], itself left out
    reach = torch.maximum(far[near], (v[:, None] - v[near]).abs())
    density = 1 / (reach.mean(dim=1) + GUARD)
    return torch.empty_like(v).scatter_(0, order, density[near].mean(dim=1) / density)


def count_outliers(values: Tensor, neighbours: int) -> int:
    """How many of `values` [N] are outliers, above or below; computed in main memory, where their number is needed.

    What is no finite number is neither an outlier nor anyone's neighbour.
    """
    values = values.detach().double().cpu()
    return int((outlier_factor(values[values.isfinite()], neighbours) > LIMIT).sum())
