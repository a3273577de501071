"""Triton kernels of `bipartite_match`: similarities are reduced as they are made, and never stored."""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.bipartite_match import reference
from vtc.kernels.kmeans.triton import TILE, WARPS, products


@triton.jit
def _energy(
    x, scale, lengths, out, count, size, margin, same,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + b).to(tl.int32)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = tl.load(scale + b * count + rows, mask=rows < count, other=0.0)
    total = tl.zeros([ROWS], dtype=tl.float64)  # as in the reference
    own = x + b * count * size
    for start in range(0, length, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        theirs = tl.load(scale + b * count + columns, mask=columns < count, other=0.0)
        cosine = products(
            own, own, rows.to(tl.int64), columns.to(tl.int64), count, count, size, BLOCK_D, ROWS, COLUMNS, CAST
        )
        cosine = cosine * (mine[:, None] * theirs[None, :])
        above = tl.where(cosine > same, 1.0, cosine) - margin
        value = tl.where(above > 0, above, tl.exp(tl.minimum(above, 0.0)) - 1.0)
        total += tl.sum(tl.where((columns < length)[None, :], value, 0.0), 1).to(tl.float64)
    tl.store(out + b * count + rows, total / length, mask=rows < count)


@triton.jit
def _nearest(
    left, right, scale, counts, best, where, a, r, size,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    there = tl.load(counts + b).to(tl.int32)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    highest = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    index = tl.zeros([ROWS], dtype=tl.int32)
    for start in range(0, there, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        theirs = tl.load(scale + b * r + columns, mask=columns < r, other=0.0)
        product = theirs[None, :] * products(
            left + b * a * size, right + b * r * size, rows.to(tl.int64), columns.to(tl.int64), a, r, size,
            BLOCK_D, ROWS, COLUMNS, CAST,
        )  # fmt: skip
        product = tl.where((columns < there)[None, :], product, float("-inf"))
        top = tl.max(product, 1)
        found = tl.min(tl.where(product == top[:, None], columns[None, :], r), 1)  # ties: the lowest
        index = tl.where(top > highest, found, index)
        highest = tl.maximum(highest, top)
    tl.store(best + b * a + rows, highest, mask=rows < a)
    tl.store(where + b * a + rows, index.to(tl.int64), mask=rows < a)


def _constants() -> dict[str, int | bool]:
    return TILE | dict(CAST=os.environ.get("TRITON_INTERPRET") == "1", num_warps=WARPS)


def energy(x: Tensor, scale: Tensor, margin: float, lengths: Tensor) -> Tensor:
    b, n, d = x.shape
    out = torch.empty(b, n, dtype=torch.float64, device=x.device)
    grid = (triton.cdiv(n, TILE["ROWS"]), b)
    _energy[grid](x.contiguous(), scale.contiguous(), lengths, out, n, d, margin, reference.SAME, **_constants())
    return out


def nearest(left: Tensor, right: Tensor, scale: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    b, a, d = left.shape
    best = torch.empty(b, a, dtype=torch.float32, device=left.device)
    where = torch.empty(b, a, dtype=torch.long, device=left.device)
    args = (left.contiguous(), right.contiguous(), scale.contiguous(), count.contiguous(), best, where)
    _nearest[(triton.cdiv(a, TILE["ROWS"]), b)](*args, a, right.shape[1], d, **_constants())
    return best, where


def bipartite_match(features: Tensor, r: Tensor, margin: float | None, lengths: Tensor) -> Tensor:
    return reference.match(features, r, margin, lengths, energy, nearest)


def bipartite_pairs(features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return reference.pairs(*reference.numbers(features), lengths, nearest)
