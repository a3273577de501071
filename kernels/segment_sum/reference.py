"""Weighted sum of the rows of each segment."""

import torch
import torch.nn.functional as F
from torch import Tensor


def segment_sum(x: Tensor, source: Tensor, weight: Tensor, segments: int) -> Tensor:
    """x [N, D], source LongTensor [N] in [-1, segments), weight [N] -> [segments, D] in x's dtype, summed in fp32.

    Rows are added in their order; rows of no segment are not read.
    """
    key, order = source.sort(stable=True)
    if x.device.type != "cpu":  # to leave unused rows out, their number would have to be read
        first = torch.searchsorted(key, torch.arange(-1, segments, device=x.device))
        weights = torch.where(source >= 0, weight.float(), 0.0)[order]
        return F.embedding_bag(order, x.float(), first, mode="sum", per_sample_weights=weights)[1:].to(x.dtype)
    first = torch.searchsorted(key, torch.arange(segments, device=x.device))
    unused = int((source < 0).sum())
    if unused == len(source):
        return x.new_zeros(segments, x.shape[-1])
    order = order[unused:]
    weights = weight[order].float()
    return F.embedding_bag(order, x.float(), first - unused, mode="sum", per_sample_weights=weights).to(x.dtype)
