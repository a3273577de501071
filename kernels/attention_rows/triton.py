"""Triton kernels of `attention_rows`: normalisers first, then probabilities averaged over heads; no atomics."""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def logits_of(
    q, k, b, h, rows, keys, queries, count, groups, heads, size, scale, SIZE: tl.constexpr, CAST: tl.constexpr
):
    """Logits [ROWS, KEYS] of one head: q [B, H, R, d], k [B, G, N, d], both contiguous."""
    d = tl.arange(0, SIZE)
    g = h // (heads // groups)
    q_at = ((b * heads + h) * queries + rows[:, None]) * size + d[None, :]
    k_at = ((b * groups + g) * count + keys[None, :]) * size + d[:, None]
    inside = d < size
    left = tl.load(q + q_at, mask=(rows < queries)[:, None] & inside[None, :], other=0.0)
    right = tl.load(k + k_at, mask=(keys < count)[None, :] & inside[:, None], other=0.0)
    if CAST:  # the interpreter's bf16 is not to be trusted
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="tf32x3") * scale


@triton.jit
def allowed_of(at, seen, b, rows, keys, queries, count, CAUSAL: tl.constexpr, MASKED: tl.constexpr):
    """BoolTensor [ROWS, KEYS]: which keys a query may see."""
    allowed = (rows < queries)[:, None] & (keys < count)[None, :]
    if CAUSAL:
        limit = tl.load(at + b * queries + rows, mask=rows < queries, other=-1)
        allowed = allowed & (keys[None, :] <= limit[:, None])
    if MASKED:
        there = tl.load(seen + b * count + keys, mask=keys < count, other=0)
        allowed = allowed & (there != 0)[None, :]
    return allowed


@triton.jit
def last_seen(at, b, rows, queries, count, CAUSAL: tl.constexpr):
    """The last key that any of the queries ROWS may see; what lies behind it does not have to be looked at."""
    last = count - 1
    if CAUSAL:
        last = tl.minimum(last, tl.max(tl.load(at + b * queries + rows, mask=rows < queries, other=-1), 0).to(tl.int32))
    return last


@triton.jit(do_not_specialize=["queries", "count", "share"])
def normalisers(
    q, k, at, seen, lse, queries, count, groups, heads, size, scale, share,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
    CAST: tl.constexpr,
):  # fmt: skip
    """log of the softmax denominators over `share` keys, [B, H, shares, R]; -inf for a query that sees none of them."""
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    part = tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    end = tl.minimum(part * share + share, last_seen(at, b, rows, queries, count, CAUSAL) + 1)
    for start in range(part * share, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        logits = logits_of(q, k, b, h, rows, keys, queries, count, groups, heads, size, scale, SIZE, CAST)
        allowed = allowed_of(at, seen, b, rows, keys, queries, count, CAUSAL, MASKED)
        logits = tl.where(allowed, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
        top = higher
    result = tl.where(total > 0, top + tl.log(tl.maximum(total, 1e-38)), float("-inf"))
    place = ((b * heads + h) * tl.num_programs(2) + part) * queries
    tl.store(lse + place + rows, result, mask=rows < queries)


@triton.jit(do_not_specialize=["queries", "count"])
def _rows(
    q, k, at, seen, lse, out, queries, count, groups, heads, size, scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr,
    CAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    allowed = allowed_of(at, seen, b, rows, keys, queries, count, CAUSAL, MASKED)
    mean = tl.zeros([ROWS, KEYS], dtype=tl.float32)
    some = last_seen(at, b, rows, queries, count, CAUSAL) >= tl.program_id(1) * KEYS
    for h in range(tl.where(some, heads, 0)):
        logits = logits_of(q, k, b, h, rows, keys, queries, count, groups, heads, size, scale, SIZE, CAST)
        bottom = tl.load(lse + (b * heads + h) * queries + rows, mask=rows < queries, other=float("inf"))
        mean += tl.where(allowed, tl.exp(logits - bottom[:, None]), 0.0)
    place = (b * queries + rows[:, None]) * count + keys[None, :]
    tl.store(out + place, mean / heads, mask=(rows < queries)[:, None] & (keys < count)[None, :])


STAGES = 2
MANY = 64  # queries with which a tile is as large as the tensor cores of an H100 want it (WGMMA: 64 rows)
PROGRAMS = 256  # so many at least, where there are few queries: the keys are shared out; an H100 has 132 SMs


def tile(full: bool, queries: int) -> tuple[dict[str, int], int]:
    """Block sizes and warps; fp32 takes three products each, so smaller blocks, or registers run out."""
    if full:
        return dict(ROWS=16, KEYS=32), 4
    return (dict(ROWS=64, KEYS=64), 4) if queries >= MANY else (dict(ROWS=16, KEYS=64), 4)


def shares(queries: int, count: int, heads: int, blocks: dict[str, int]) -> tuple[int, int]:
    """(keys of a program, programs for all keys): more than one where there are few queries, and heads of a batch."""
    alone = triton.cdiv(queries, blocks["ROWS"]) * heads
    wanted = min(triton.cdiv(PROGRAMS, alone), triton.cdiv(count, 4 * blocks["KEYS"]))
    share = triton.cdiv(triton.cdiv(count, max(1, wanted)), blocks["KEYS"]) * blocks["KEYS"]
    return share, triton.cdiv(count, share)


def prepare(q: Tensor, k: Tensor, at: Tensor | None, seen: Tensor | None, scale: float) -> tuple:
    """(q, k, at, seen contiguous, normalisers [B, H, R], sizes, constants) of both kernels that need them.

    A query that sees nothing has the normaliser +inf.
    """
    q, k = q.contiguous(), k.contiguous()
    b, heads, queries, size = q.shape
    groups, count = k.shape[1], k.shape[2]
    blocks, warps = tile(q.dtype == torch.float32, queries)
    at = None if at is None else at.contiguous()
    seen = None if seen is None else seen.expand(b, -1).to(torch.uint8).contiguous()
    constants = dict(
        CAUSAL=at is not None,
        MASKED=seen is not None,
        SIZE=max(16, triton.next_power_of_2(size)),
        CAST=os.environ.get("TRITON_INTERPRET") == "1",
        num_warps=warps,
        num_stages=STAGES,
        **blocks,
    )
    share, parts = shares(queries, count, b * heads, blocks)
    lse = torch.empty(b, heads, parts, queries, dtype=torch.float32, device=q.device)
    sizes = (queries, count, groups, heads, size, scale)
    at_, seen_ = (q if x is None else x for x in (at, seen))  # never read where the constant says so
    grid = (triton.cdiv(queries, constants["ROWS"]), b * heads, parts)
    normalisers[grid](q, k, at_, seen_, lse, *sizes, share, **constants)
    lse = lse[:, :, 0] if parts == 1 else lse.logsumexp(dim=2)
    lse = torch.where(lse == -torch.inf, torch.inf, lse)
    return q, k, at_, seen_, lse, sizes, constants


def attention_rows(q: Tensor, k: Tensor, scale: float, at: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
    out = torch.empty(q.shape[0], q.shape[2], k.shape[2], dtype=torch.float32, device=q.device)
    if out.numel():
        q, k, at_, seen_, lse, sizes, constants = prepare(q, k, at, seen, scale)
        grid = (triton.cdiv(q.shape[2], constants["ROWS"]), triton.cdiv(k.shape[2], constants["KEYS"]), q.shape[0])
        _rows[grid](q, k, at_, seen_, lse, out, *sizes, **constants)
    return out
