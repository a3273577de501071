"""Triton kernel of `greedy_coverage`: all steps of one picture in one program, lazily.

Bounds of gains, the step at which each was last looked at, and how well every target is covered stay in registers. A
look reads one row of the cover.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.greedy_coverage import reference
from vtc.kernels.greedy_diversity.triton import to_sixteen, warps
from vtc.kernels.pictures import at_least_zero

RESIDENT = 8192  # candidates, and targets, that fit the registers of one program


@triton.jit
def _row(cover, b, i, count, targets, to):
    """Cover of targets `to` by candidate i, 0 where it is no number."""
    value = tl.load(cover + (b * count + i) * targets + to, mask=to < targets, other=0.0).to(tl.float32)
    return tl.where(value - value == 0, value, 0.0)


@triton.jit(do_not_specialize=["k"])
def _coverage(
    cover, bounds, weight, chosen, count, targets, k, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """A candidate that is chosen has the bound -inf, as has what lies behind a picture's own length, from the start."""
    b = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    to = tl.arange(0, WIDE)
    bound = tl.load(bounds + b * count + at, mask=at < count, other=float("-inf"))
    looked = tl.zeros([BLOCK], dtype=tl.int32)
    covered = tl.zeros([WIDE], dtype=tl.float32)
    for step in range(0, k):
        best = tl.max(bound, 0)
        pick = tl.min(tl.where(bound == best, at, BLOCK - 1), 0)  # ties: the lowest
        known = tl.sum(tl.where(at == pick, looked, 0), 0)
        while known < step:
            gain = tl.sum(tl.maximum(_row(cover, b, pick, count, targets, to) - covered, 0.0), 0)
            if WEIGHTED:
                gain = gain * tl.load(weight + b * count + pick)
            bound = tl.where(at == pick, tl.minimum(bound, gain), bound)
            looked = tl.where(at == pick, step, looked)
            best = tl.max(bound, 0)
            pick = tl.min(tl.where(bound == best, at, BLOCK - 1), 0)
            known = tl.sum(tl.where(at == pick, looked, 0), 0)
        tl.store(chosen + b * k + step, pick.to(tl.int64))
        covered = tl.maximum(covered, _row(cover, b, pick, count, targets, to))
        bound = tl.where(at == pick, float("-inf"), bound)


def greedy_coverage(cover: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    if max(cover.shape[1:]) > RESIDENT:
        return reference.greedy_coverage(cover, k, weight, lengths)
    lengths, cover, (weight,) = to_sixteen(lengths, cover, weight)
    if cover.shape[2] % 16:  # rows of it, too, begin at whole 64 bytes then
        cover = F.pad(cover, (0, -cover.shape[2] % 16))
    cover = cover.contiguous()
    b, n, m = cover.shape
    worth = None if weight is None else at_least_zero(weight).contiguous()
    bounds = torch.where(cover.isfinite(), cover, 0.0).clamp_(min=0).sum(dim=-1, dtype=torch.float32)
    if worth is not None:
        bounds *= worth
    chosen = torch.empty(b, k, dtype=torch.long, device=cover.device)
    if lengths is not None:
        behind = torch.arange(n, device=cover.device) - lengths.to(cover.device)[:, None]  # [B, N], from 0 on
        bounds = torch.where(behind >= 0, -1.0 - behind, bounds)  # after all others, in their order
    block, wide = (max(16, triton.next_power_of_2(size)) for size in (n, m))
    given = bounds if worth is None else worth
    _coverage[(b,)](
        *(cover, bounds, given, chosen, n, m, k),
        WEIGHTED=worth is not None,
        BLOCK=block,
        WIDE=wide,
        num_warps=warps(max(block, wide)),
    )
    return chosen
