"""Attention that each key receives: the column means of the softmax matrix, without ever holding N x N of it."""

import torch
from torch import Tensor

from vtc.kernels.attention_rows.reference import blocks

BLOCK = 2**18  # logits held at a time: memory is [B, H, queries of a block, N]


def received_attention(
    q: Tensor,
    k: Tensor,
    scale: float,
    at: Tensor | None = None,
    seen: Tensor | None = None,
    since: Tensor | None = None,
) -> Tensor:
    """q [B, H, R, d], k [B, G, N, d] with G dividing H -> [B, N] in fp32; sums to 1 over the keys.

    at: LongTensor [B, R], the last key each query may see; a query with -1 is left out of the mean. seen: BoolTensor
    [B, N], keys that are there at all. since: LongTensor [B, R], the first key each query may see.
    """
    total = torch.zeros(k.shape[0], k.shape[2], device=k.device)
    step = max(16, BLOCK // (q.shape[0] * q.shape[1] * k.shape[2]))
    for rows, _ in blocks(q, k, scale, at, seen, since, step):
        total += rows.sum(dim=1)
    if at is None:
        return total / q.shape[2]
    return total / (at >= 0).sum(dim=1, keepdim=True).clamp(min=1)
