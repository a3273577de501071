"""Triton kernel of `transition`: one pass over both tensors, one program per row."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _transition(before, after, ratio, cosine, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    xx = tl.zeros([BLOCK], dtype=tl.float32)
    yy = tl.zeros([BLOCK], dtype=tl.float32)
    xy = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < size
        x = tl.load(before + row * size + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(after + row * size + at, mask=inside, other=0.0).to(tl.float32)
        xx += x * x
        yy += y * y
        xy += x * y
    norm_x, norm_y = tl.sqrt(tl.sum(xx, 0)), tl.sqrt(tl.sum(yy, 0))
    tl.store(ratio + row, norm_y / tl.maximum(norm_x, 1e-12))
    tl.store(cosine + row, tl.sum(xy, 0) / tl.maximum(norm_x * norm_y, 1e-12))


def transition(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    x, y = before.contiguous(), after.contiguous()
    size = x.shape[-1]
    ratio = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    cosine = torch.empty_like(ratio)
    if ratio.numel():
        block = min(1024, triton.next_power_of_2(size))
        _transition[(ratio.numel(),)](x, y, ratio, cosine, size, BLOCK=block)
    return ratio, cosine
