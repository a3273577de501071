"""Density-peaks clustering with k nearest neighbours (DPC-KNN)."""

import torch
from torch import Tensor


def dpc_knn(features: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """features [N, D] -> centres LongTensor [clusters], best first, and member LongTensor [N] in [0, clusters).

    Density is exp(-mean squared distance to the nearest `neighbours`), distances divided by sqrt(D), and a token is its
    own nearest neighbour; a centre is dense and far from anything denser. Equal densities rank by index, so the result
    is the same every time.
    """
    x = features.float()
    n = x.shape[0]
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
