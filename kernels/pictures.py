"""Greedy choice picture by picture, for pictures of different sizes in one batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def one_by_one(
    choose: Callable[..., Tensor], k: int, lengths: Tensor | None, *tensors: Tensor | None
) -> tuple[Tensor, list[int]]:
    """What `choose` takes of each picture: (LongTensor [B, k] in order of selection, how many tokens each one has).

    Args:
        choose: called with a picture's own rows of each tensor, and how many of them to choose (k, or all if they are
            fewer): LongTensor of that many. Rows behind a picture's length come last.
        lengths: LongTensor [B], tokens of each picture; None = all have N.
        tensors: [B, N, ...] each, or None, which is passed on.
    """
    whole = next(x for x in tensors if x is not None)
    b, n = whole.shape[:2]
    sizes = [n] * b if lengths is None else lengths.tolist()
    found = torch.empty(b, k, dtype=torch.long, device=whole.device)
    for i, size in enumerate(sizes):
        few = min(k, size)
        found[i, :few] = choose(*(None if x is None else x[i, :size] for x in tensors), few)
        found[i, few:] = torch.arange(size, size + k - few, device=whole.device)
    return found, sizes


def behind(x: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, N] in fp32 for x [B, N, ...]: 0 for a picture's own tokens, -1 -2 ... for what stands behind them."""
    b, n = x.shape[:2]
    if lengths is None:
        return torch.zeros(b, n, device=x.device)
    places = torch.arange(n, device=x.device)
    return (lengths.to(x.device)[:, None] - 1 - places).clamp(max=0).float()


def at_least_zero(weight: Tensor) -> Tensor:
    """Weights in fp32; what is negative, or no number, counts as 0."""
    weight = weight.float()
    return torch.where(weight.isfinite(), weight, 0.0).clamp(min=0)


def ranks(weight: Tensor) -> Tensor:
    """Of each of weight [..., N] its place by falling weight, LongTensor [..., N]: ties to the lowest index, NaN last.

    Example: .2 .5 nan .5 -> 2 0 3 1.
    """
    order = weight.detach().float().neg().argsort(dim=-1, stable=True)
    places = torch.arange(weight.shape[-1], device=weight.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
