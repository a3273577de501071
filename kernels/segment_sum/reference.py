"""Weighted sum of the rows of each segment."""

import torch
from torch import Tensor


def segment_sum(x: Tensor, source: Tensor, weight: Tensor, segments: int) -> Tensor:
    """x [N, D], source LongTensor [N] in [-1, segments), weight [N] -> [segments, D] in x's dtype, summed in fp32."""
    used = source >= 0
    rows = x[used].float() * weight[used].float().unsqueeze(-1)
    out = torch.zeros(segments, x.shape[-1], dtype=torch.float32, device=x.device)
    return out.index_add_(0, source[used], rows).to(x.dtype)
