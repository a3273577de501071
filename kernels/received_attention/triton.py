"""Triton kernel of `received_attention`: column means of the softmax matrix in two passes, without the matrix.

Each program adds up one block of columns for a share of the heads, in a fixed order; the shares are added afterwards.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.attention_rows.triton import allowed_of, last_seen, logits_of, prepare

SHARES = 8  # programs per block of columns


@triton.jit(do_not_specialize=["queries", "count"])
def _columns(
    q, k, at, seen, lse, out, queries, count, groups, heads, size, scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
    CAST: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    share = tl.program_id(1)
    keys = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    total = tl.zeros([KEYS], dtype=tl.float32)
    for h in range(share, heads, SHARES):
        for start in range(0, queries, ROWS):
            rows = start + tl.arange(0, ROWS)
            if last_seen(at, b, rows, queries, count, CAUSAL) >= tl.program_id(0) * KEYS:
                logits = logits_of(q, k, b, h, rows, keys, queries, count, groups, heads, size, scale, SIZE, CAST)
                allowed = allowed_of(at, seen, b, rows, keys, queries, count, CAUSAL, MASKED)
                bottom = tl.load(lse + (b * heads + h) * queries + rows, mask=rows < queries, other=float("inf"))
                total += tl.sum(tl.where(allowed, tl.exp(logits - bottom[:, None]), 0.0), 0)
    tl.store(out + (b * SHARES + share) * count + keys, total, mask=keys < count)


def received_attention(
    q: Tensor, k: Tensor, scale: float, at: Tensor | None = None, seen: Tensor | None = None
) -> Tensor:
    batch, heads, count = q.shape[0], q.shape[1], k.shape[2]
    shares = torch.empty(batch, SHARES, count, dtype=torch.float32, device=q.device)
    q, k, at_, seen_, lse, sizes, constants = prepare(q, k, at, seen, scale)
    grid = (triton.cdiv(count, constants["KEYS"]), SHARES, batch)
    _columns[grid](q, k, at_, seen_, lse, shares, *sizes, SHARES=SHARES, **constants)
    total = shares.sum(dim=1) / heads
    if at is None:
        return total / q.shape[2]
    return total / (at >= 0).sum(dim=1, keepdim=True).clamp(min=1)
