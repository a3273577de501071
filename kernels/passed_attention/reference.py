"""What each key collects when every query hands out a weight of its own, in each head: products of the transposed
softmax matrix with a vector, without ever holding N x N of it.

There is no Triton kernel: nothing but one method asks for it, on the few hundred tokens of a vision tower.
"""

import torch
from torch import Tensor

BLOCK = 2**20  # logits held at a time


def passed_attention(q: Tensor, k: Tensor, scale: float, weight: Tensor) -> Tensor:
    """q [B, H, R, d], k [B, H, N, d], weight [B, H, R] -> [B, H, N] in fp32: the sum over r of weight * softmax."""
    b, heads, queries, _ = q.shape
    keys, out = k.float().transpose(-1, -2), torch.zeros(b, heads, k.shape[2], device=k.device)
    step = max(16, BLOCK // (b * heads * k.shape[2]))
    for start in range(0, queries, step):
        rows = ((q[:, :, start : start + step].float() * scale) @ keys).softmax(dim=-1)
        out += (weight[:, :, None, start : start + step].float() @ rows)[:, :, 0]
    return out
