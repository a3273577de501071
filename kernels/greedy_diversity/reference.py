"""Greedy diversity from a Gram matrix: farthest-first (max-min) and max-sum diversification."""

import torch
import torch.nn.functional as F
from torch import Tensor


def greedy_diversity(features: Tensor, k: int, mode: str, first: Tensor | None) -> Tensor:
    """features [B, N, D], first [B] or None -> LongTensor [B, k], distinct, in order of selection.

    Ties go to the lowest index. A zero row, or one that holds NaN or infinity, is similar to nothing (cosine 0).
    """
    b = features.shape[0]
    x = F.normalize(features.float(), dim=-1).nan_to_num(0.0)
    cosine = x @ x.transpose(-1, -2)  # [B, N, N]
    if first is None:
        nearest = cosine.clone()
        nearest.diagonal(dim1=-2, dim2=-1).fill_(-2.0)
        first = nearest.amax(dim=-1).argmin(dim=-1)  # the token whose nearest neighbour is farthest
    chosen = torch.empty(b, k, dtype=torch.long, device=features.device)
    chosen[:, 0] = first
    rows = torch.arange(b, device=features.device)
    # Similarity to the chosen set, to be minimised: the largest (maxmin) or the sum (maxsum) over its members.
    score = cosine[rows, first].clone()  # [B, N]
    score[rows, first] = torch.inf
    for step in range(1, k):
        pick = score.argmin(dim=-1)
        chosen[:, step] = pick
        update = cosine[rows, pick]
        score = torch.maximum(score, update) if mode == "maxmin" else score + update
        score[rows, pick] = torch.inf
    return chosen
