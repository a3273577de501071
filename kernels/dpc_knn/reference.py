"""Density-peaks clustering with k nearest neighbours (DPC-KNN)."""

import torch
from torch import Tensor

LARGEST = 1024, 8192  # tokens whose distances are all held at once: on a CPU; on a GPU
AT_ONCE = 2**20, 2**26  # distances held at a time where there are more


def dpc_knn(features: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """features [N, D] -> centres LongTensor [clusters], best first, and member LongTensor [N] in [0, clusters).

    Density is exp(-mean squared distance to the nearest `neighbours`), distances divided by sqrt(D), and a token is its
    own nearest neighbour; a centre is dense and far from anything denser. Equal densities rank by index, so the result
    is the same every time.
    """
    x = features.float()
    n, gpu = x.shape[0], x.device.type != "cpu"
    if n > LARGEST[gpu]:
        return _by_tiles(x, clusters, min(neighbours, n), max(1, AT_ONCE[gpu] // n))
    distance = torch.cdist(x, x) / x.shape[1] ** 0.5
    distance = torch.maximum(distance, distance.T).fill_diagonal_(0)  # cdist rounds: each other's nearest are equal
    nearest = distance.topk(min(neighbours, n), largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    rank = torch.empty(n, dtype=torch.long, device=x.device)
    rank[density.argsort(descending=True, stable=True)] = torch.arange(n, device=x.device)
    denser = rank[None, :] < rank[:, None]  # [i, j]: j is denser than i
    apart = distance.masked_fill(~denser, torch.inf).amin(dim=1)
    apart = torch.where(apart.isinf(), distance.max(), apart)  # the densest of all
    centres = (density * apart).argsort(descending=True, stable=True)[:clusters]
    member = distance[:, centres].argmin(dim=1)
    member[centres] = torch.arange(clusters, device=x.device)
    return centres, member


def _by_tiles(x: Tensor, clusters: int, neighbours: int, step: int) -> tuple[Tensor, Tensor]:
    """The same of x [N, D] with `step` rows of squared distances at a time.

    Once in the order of the tokens, for densities; then in that of density, in which the denser ones of a token are
    those before it, so that half of the distances will do.
    """
    n, width = x.shape
    squares, whole = torch.cat([part.square().sum(dim=1) for part in x.split(step)]), slice(None)
    near, widest = [], squares.new_zeros(())
    for start in range(0, n, step):
        block = _between(x, squares, slice(start, start + step), whole)
        block.diagonal(offset=start).fill_(0.0)
        near.append(block.topk(neighbours, largest=False).values.mean(dim=1))
        widest = torch.maximum(widest, block.amax())
    density = (torch.cat(near) / -width).exp()
    order = density.argsort(descending=True, stable=True)
    x, squares = x[order], squares[order]
    apart = [widest.reshape(1)]  # the densest of all has nothing before it
    for start in range(1, n, step):
        stop = min(n, start + step)
        block = _between(x, squares, slice(start, stop), slice(0, stop - 1))
        later = torch.arange(stop - 1, device=x.device) >= torch.arange(start, stop, device=x.device)[:, None]
        apart.append(block.masked_fill_(later, torch.inf).amin(dim=1))
    score = density.new_empty(n).index_copy_(0, order, (torch.cat(apart) / width).sqrt_()).mul_(density)
    centres = score.argsort(descending=True, stable=True)[:clusters]
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(n, device=x.device))
    own = torch.cat(
        [_between(x, squares, slice(start, start + step), rank[centres]).argmin(dim=1) for start in range(0, n, step)]
    )
    member = torch.empty_like(order).index_copy_(0, order, own)
    member[centres] = torch.arange(clusters, device=x.device)
    return centres, member


def _between(x: Tensor, squares: Tensor, rows: slice, columns: slice | Tensor) -> Tensor:
    """Squared distances of some rows of x [N, D], so long in squares [N], to others: [rows, columns]."""
    found = torch.addmm(squares[columns][None], x[rows], x[columns].T, alpha=-2)
    return found.add_(squares[rows, None]).clamp_(min=0.0)
