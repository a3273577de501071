"""Greedy choice of the tokens of largest determinant: important ones that span much (determinantal point process)."""

import torch
from torch import Tensor

from vtc.kernels.greedy_determinantal import lazy
from vtc.kernels.greedy_diversity.reference import numbers, products
from vtc.kernels.pictures import at_least_zero, behind, ranks


def greedy_determinantal(
    features: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """features [B, N, D], weight [B, N] or None, lengths [B] or None -> LongTensor [B, k], in order of selection.

    Every step takes the token that makes the determinant of L, on what is chosen, largest: L_ij = w_i cos_ij w_j. That
    is the one of which most is left, d^2, once its projection on the chosen ones has gone (fast greedy MAP, arXiv
    1709.05135, algorithm 1): what the rows e of a pivoted Cholesky factor leave of L is L - sum of e e^T, and d^2 its
    diagonal. Where nothing is left of any, beyond the rank, the highest weights follow. Ties go to the lowest index. A
    row that holds NaN or infinity, or a weight that is none or negative, counts as 0. Rows behind a picture's own
    length come last.

    Example: three rows (1 0), (.8 .6) and (0 1), weights 1 1 .5, so d^2 = 1 1 .25. The first is chosen, and takes 1 .64
    0 away: .36 of the second is left, more than the third's .25, and it is next.
    """
    choose = lazy.greedy_determinantal if features.device.type == "cpu" else step_by_step  # lazy ones wait for a GPU
    return choose(features, k, weight, lengths)


def step_by_step(features: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """The definition, all pictures at once: arguments as above, shapes [B, N, ...]."""
    b, n, d = features.shape
    x, inverse = numbers(features, exact=True)
    last = behind(features, lengths)
    worth = torch.ones(b, n, device=x.device) if weight is None else at_least_zero(weight)
    worth = torch.where(last < 0, 0.0, worth)
    left = torch.where((x != 0).any(dim=2), worth.square(), 0.0)
    least, scale = lazy.SPANNED * left, worth * inverse
    spanned = torch.where(last < 0, last - n, -1.0 - ranks(worth) / n)  # where nothing is left
    gram = products(x, x)
    factor = torch.zeros(b, min(k, n, d), n, device=x.device)
    chosen = torch.empty(b, k, dtype=torch.long, device=x.device)
    for step in range(k):
        pick = torch.where(left > least, left, spanned).argmax(dim=1, keepdim=True)  # [B, 1]
        chosen[:, step : step + 1] = pick
        if step < factor.shape[1]:
            wide = pick[..., None].expand(-1, -1, n)
            row = gram.gather(1, wide)[:, 0] * scale * scale.gather(1, pick)
            row = row - (factor.gather(2, pick[..., None].expand(-1, factor.shape[1], -1)) * factor).sum(dim=1)
            own = left.gather(1, pick)
            factor[:, step] = torch.where(own > least.gather(1, pick), row * own.rsqrt(), 0.0)
            left = left - factor[:, step].square()
        left, spanned = left.scatter(1, pick, 0.0), spanned.scatter(1, pick, -torch.inf)
    return chosen
