"""Softmax rows of chosen queries, averaged over heads."""

from torch import Tensor


def attention_rows(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q [B, H, R, d], k [B, H, N, d] -> [B, R, N] in fp32; every row sums to 1."""
    logits = (q.float() * scale) @ k.float().transpose(-1, -2)  # [B, H, R, N]
    return logits.softmax(dim=-1).mean(dim=1)
