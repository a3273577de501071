"""What each key collects when every query hands out a weight of its own, in each head: products of the transposed
softmax matrix with a vector, without ever holding N x N of all heads.

Passed on several times, the matrix of a head is the same each time: heads whose matrices fit into a block are made one
block after the other, and each is used as often as it is needed. Where not even one fits, rows are made anew each time.

There is no Triton kernel: nothing but one method asks for it, on the few hundred tokens of a vision tower.
"""

import torch
from torch import Tensor

BLOCK = 2**21  # logits held at a time: one head of 1,448 tokens


def passed_attention(q: Tensor, k: Tensor, scale: float, weight: Tensor, times: int = 1) -> Tensor:
    """q [B, H, R, d], k [B, H, N, d], weight [B, H, R] -> [B, H, N] in fp32: the sum over r of weight * softmax.

    times: how often; what comes out is the next weight (R = N).
    """
    b, h, queries, _ = q.shape
    keys = k.shape[2]
    if queries * keys > BLOCK:
        for _ in range(times):
            weight = _by_rows(q, k, scale, weight)
        return weight
    queried, keyed, out = (x.flatten(0, 1).float() for x in (q, k, weight))  # [B * H, ...]
    step = max(1, BLOCK // (queries * keys))
    done = []
    for own in (slice(start, start + step) for start in range(0, b * h, step)):
        matrix = ((queried[own] * scale) @ keyed[own].mT).softmax(dim=-1)
        passed = out[own, None]
        for _ in range(times):
            passed = passed @ matrix
        done.append(passed[:, 0])
    return torch.cat(done).view(b, h, keys)


def _by_rows(q: Tensor, k: Tensor, scale: float, weight: Tensor) -> Tensor:
    """Once, some queries after the others."""
    b, heads, queries, _ = q.shape
    keys, out = k.float().transpose(-1, -2), torch.zeros(b, heads, k.shape[2], device=k.device)
    step = max(16, BLOCK // (b * heads * k.shape[2]))
    for start in range(0, queries, step):
        rows = ((q[:, :, start : start + step].float() * scale) @ keys).softmax(dim=-1)
        out += (weight[:, :, None, start : start + step].float() @ rows)[:, :, 0]
    return out
