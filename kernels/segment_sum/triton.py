"""Triton kernel of `segment_sum`: rows are sorted by segment, one program adds up one segment's rows in their order.

No atomics: the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _segment_sum(x, order, weight, offset, out, size, BLOCK: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(tl.load(offset + segment), tl.load(offset + segment + 1)):
        row = tl.load(order + i)
        share = tl.load(weight + row).to(tl.float32)
        total += share * tl.load(x + row * size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + segment * size + at, total.to(out.dtype.element_ty), mask=inside)


def segment_sum(x: Tensor, source: Tensor, weight: Tensor, segments: int) -> Tensor:
    x, size = x.contiguous(), x.shape[-1]
    out = torch.empty(segments, size, dtype=x.dtype, device=x.device)
    key, order = source.sort(stable=True)
    offset = torch.searchsorted(key, torch.arange(segments + 1, device=x.device))
    if out.numel():
        block = min(256, triton.next_power_of_2(size))
        grid = (segments, triton.cdiv(size, block))
        _segment_sum[grid](x, order, weight.contiguous(), offset, out, size, BLOCK=block)
    return out
