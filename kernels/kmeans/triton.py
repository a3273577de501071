"""Triton kernel of `kmeans`: the assignment streams centroids past blocks of tokens; N x K is never in memory."""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.kmeans import reference
from vtc.kernels.segment_sum.triton import segment_sum


@triton.jit
def products(
    x, y, rows, columns, count_x, count_y, size, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAST: tl.constexpr,
):  # fmt: skip
    """x[rows] . y[columns], [ROWS, COLUMNS] in fp32; x [.., D] and y [.., D] contiguous, rows and columns int64."""
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, size, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        left = tl.load(
            x + rows[:, None] * size + d[None, :], mask=(rows < count_x)[:, None] & (d < size)[None, :], other=0.0
        )
        right = tl.load(
            y + columns[None, :] * size + d[:, None], mask=(columns < count_y)[None, :] & (d < size)[:, None], other=0.0
        )
        if CAST:  # the interpreter's bf16 is not to be trusted
            left, right = left.to(tl.float32), right.to(tl.float32)
        total += tl.dot(left, right, input_precision="tf32x3")
    return total


@triton.jit
def _assign(
    x, centroids, bias, label, count, k, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
    CAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    best = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    where = tl.zeros([ROWS], dtype=tl.int32)
    for start in range(0, k, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        score = products(
            x + b * count * size, centroids + b * k * size, rows.to(tl.int64), columns.to(tl.int64), count, k, size,
            BLOCK_D, ROWS, COLUMNS, CAST,
        )  # fmt: skip
        score += tl.load(bias + b * k + columns, mask=columns < k, other=0.0)[None, :]
        score = tl.where((columns < k)[None, :], score, float("-inf"))
        top = tl.max(score, 1)
        index = tl.min(tl.where(score == top[:, None], columns[None, :], k), 1)  # ties: the lowest
        where = tl.where(top > best, index, where)
        best = tl.maximum(best, top)
    tl.store(label + b * count + rows, where.to(tl.int64), mask=rows < count)


TILE = dict(ROWS=32, COLUMNS=32, BLOCK_D=32)
WARPS = 8


def assign(x: Tensor, centroids: Tensor, bias: Tensor) -> Tensor:
    b, n, d = x.shape
    label = torch.empty(b, n, dtype=torch.long, device=x.device)
    cast = os.environ.get("TRITON_INTERPRET") == "1"
    grid = (triton.cdiv(n, TILE["ROWS"]), b)
    args = (x.contiguous(), centroids.contiguous(), bias.contiguous(), label, n, centroids.shape[1], d)
    _assign[grid](*args, **TILE, CAST=cast, num_warps=WARPS)
    return label


def kmeans(
    features: Tensor, k: int, metric: str, iterations: int, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return reference.lloyd(features, k, metric, iterations, lengths, assign, segment_sum)
