"""Attention that each key receives: the column means of the softmax matrix, without ever holding N x N of it."""

import torch
from torch import Tensor

BLOCK = 256  # queries at a time: memory is [B, H, BLOCK, N]


def received_attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q [B, H, N, d], k [B, H, N, d] -> [B, N] in fp32; sums to 1 over the keys."""
    keys = k.float().transpose(-1, -2)  # [B, H, d, N]
    total = torch.zeros(k.shape[0], k.shape[2], device=k.device)
    for block in q.split(BLOCK, dim=2):
        rows = ((block.float() * scale) @ keys).softmax(dim=-1)  # [B, H, BLOCK, N]
        total += rows.mean(dim=1).sum(dim=1)
    return total / q.shape[2]
