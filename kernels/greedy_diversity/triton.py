"""Triton kernel of `greedy_diversity`: the Gram matrix by matmul, then all k steps in one program per picture."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _greedy(gram, score, first, chosen, count, k, SUM: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    pick = tl.load(first + b)
    tl.store(chosen + b * k, pick)
    for step in range(1, k):
        lowest = float("inf")
        where = count.to(tl.int64)
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < count
            update = tl.load(gram + (b * count + pick) * count + at, mask=inside, other=0.0)
            # similarity to the chosen set, to be minimised: each lane reads what it wrote itself
            value = tl.load(score + b * count + at, mask=inside, other=float("inf"))
            value = value + update if SUM else tl.maximum(value, update)
            value = tl.where(at == pick, float("inf"), value)
            tl.store(score + b * count + at, value, mask=inside)
            value = tl.where(inside, value, float("inf"))
            least = tl.min(value, 0)
            index = tl.min(tl.where(value == least, at, count), 0)  # ties: the lowest
            where = tl.where(least < lowest, index.to(tl.int64), where)
            lowest = tl.minimum(lowest, least)
        pick = where
        tl.store(chosen + b * k + step, pick)


def greedy_diversity(features: Tensor, k: int, mode: str, first: Tensor | None) -> Tensor:
    b, n = features.shape[:2]
    x = F.normalize(features.float(), dim=-1).nan_to_num(0.0)
    gram = x @ x.transpose(-1, -2)  # [B, N, N]
    if first is None:
        gram.diagonal(dim1=-2, dim2=-1).fill_(-2.0)  # a token is picked once: its own column no longer matters
        first = gram.amax(dim=-1).argmin(dim=-1)
    chosen = torch.empty(b, k, dtype=torch.long, device=features.device)
    score = torch.full((b, n), 0.0 if mode == "maxsum" else -torch.inf, device=features.device)
    block = min(4096, max(16, triton.next_power_of_2(n)))
    _greedy[(b,)](gram, score, first.contiguous(), chosen, n, k, SUM=mode == "maxsum", BLOCK=block, num_warps=8)
    return chosen
