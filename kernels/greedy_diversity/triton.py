"""Triton kernels of `greedy_diversity`: the Gram matrix by matmul, then all k steps in one program per picture.

The matrix is of the features as they are: products of half-precision numbers are exact in fp32, so nothing is rounded
to unit length first. Norms are its diagonal, and scale a row when it is read. A program keeps every token's score in
registers; a step reads one row of the matrix and writes one index.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.greedy_diversity import reference

RESIDENT = 16_384  # tokens whose scores fit the registers of one program
LARGEST = 32_768  # tokens; beyond that the matrix alone takes more than 4 GiB


@triton.jit
def _nearest(gram, scale, lengths, out, count, BLOCK: tl.constexpr):
    """Cosine of each token to its nearest other one; +inf behind the end of a shorter row."""
    b = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0)
    length = tl.load(lengths + b).to(tl.int32)
    own = tl.load(scale + b * count + i)
    top = tl.full([BLOCK], -2.0, dtype=tl.float32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        factor = own * tl.load(scale + b * count + at, mask=at < length, other=0.0)
        cosine = factor * tl.load(gram + (b * count + i) * count + at, mask=at < length, other=0.0)
        cosine = tl.where(factor == 0, 0.0, cosine)  # not 0 * NaN
        top = tl.maximum(top, tl.where((at < length) & (at != i), cosine, -2.0))
    tl.store(out + b * count + i, tl.where(i < length, tl.max(top, 0), float("inf")))


@triton.jit
def _similar(gram, scale, own, b, pick, at, count):
    """Cosine of token `pick` to tokens `at`; 0 if either is no number."""
    factor = own * tl.load(scale + b * count + pick)
    value = factor * tl.load(gram + (b * count + pick) * count + at, mask=at < count, other=0.0)
    return tl.where(factor == 0, 0.0, value)


@triton.jit(do_not_specialize=["k"])
def _greedy(gram, scale, lengths, first, chosen, count, k, SUM: tl.constexpr, BLOCK: tl.constexpr):
    """All steps of one picture; each token's similarity to the chosen set, to be minimised, stays in a register."""
    b = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    length = tl.load(lengths + b)
    own = tl.load(scale + b * count + at, mask=at < count, other=0.0)
    score = tl.full([BLOCK], 0.0 if SUM else float("-inf"), dtype=tl.float32)
    score = tl.where(at < length, score, tl.where(at < count, 1e30, float("inf")))
    pick = tl.load(first + b)
    tl.store(chosen + b * k, pick)
    for step in range(1, k):
        similar = _similar(gram, scale, own, b, pick, at, count)
        score = score + similar if SUM else tl.maximum(score, similar)
        score = tl.where(at == pick, float("inf"), score)
        least = tl.min(score, 0)
        pick = tl.min(tl.where(score == least, at, BLOCK - 1), 0).to(tl.int64)  # ties: the lowest
        tl.store(chosen + b * k + step, pick)


@triton.jit(do_not_specialize=["k"])
def _greedy_long(gram, scale, lengths, first, chosen, score, count, k, SUM: tl.constexpr, BLOCK: tl.constexpr):
    """The same for more tokens than registers: scores [B, N], initialised, in memory; each lane reads its own."""
    b = tl.program_id(0).to(tl.int64)
    pick = tl.load(first + b)
    tl.store(chosen + b * k, pick)
    for step in range(1, k):
        lowest = float("inf")
        where = count.to(tl.int64) - 1
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            own = tl.load(scale + b * count + at, mask=at < count, other=0.0)
            similar = _similar(gram, scale, own, b, pick, at, count)
            value = tl.load(score + b * count + at, mask=at < count, other=float("inf"))
            value = value + similar if SUM else tl.maximum(value, similar)
            value = tl.where(at == pick, float("inf"), value)
            tl.store(score + b * count + at, value, mask=at < count)
            least = tl.min(value, 0)
            index = tl.min(tl.where(value == least, at, count - 1), 0).to(tl.int64)
            where = tl.where(least < lowest, index, where)
            lowest = tl.minimum(lowest, least)
        pick = where
        tl.store(chosen + b * k + step, pick)
        tl.debug_barrier()  # the next step reads the scores


def to_sixteen(
    lengths: Tensor | None, x: Tensor, *others: Tensor | None
) -> tuple[Tensor | None, Tensor, list[Tensor | None]]:
    """Tensors [B, N, ...] filled up with zeros to a multiple of 16 rows, and the `lengths` [B] that they have then.

    So rows of the Gram matrix begin at whole 64 bytes, which are read at once, and pictures of all sizes share one
    compiled kernel for each BLOCK.
    """
    b, n = x.shape[:2]
    if n % 16 == 0:
        return lengths, x, list(others)

    def filled(rows: Tensor) -> Tensor:
        return F.pad(rows, (*(0, 0) * (rows.dim() - 2), 0, -n % 16))

    lengths = torch.full((b,), n, device=x.device) if lengths is None else lengths
    return lengths, filled(x), [None if rows is None else filled(rows) for rows in others]


def gram_and_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """(products of all rows [B, N, N] in fp32, 1 / norm of each row [B, N]; 0 for rows that are no numbers)."""
    gram = reference.products(features, features)
    squares = gram.diagonal(dim1=-2, dim2=-1)
    usable = squares.isfinite() & (squares > 0)
    return gram, torch.where(usable, squares.rsqrt(), 0.0)


def warps(block: int) -> int:
    """Enough threads that a program's scores stay in registers."""
    return min(32, max(4, block // 512))


def greedy_diversity(
    features: Tensor, k: int, mode: str, first: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    if features.shape[1] > LARGEST:
        return reference.greedy_diversity(features, k, mode, first, lengths)
    lengths, features, _ = to_sixteen(lengths, features)
    b, n = features.shape[:2]
    gram, scale = gram_and_scale(features)
    if lengths is None:
        lengths = torch.full((b,), n, device=features.device)
    lengths = lengths.to(features.device)
    if first is None:
        nearest = torch.empty(b, n, dtype=torch.float32, device=features.device)
        block = min(1024, max(16, triton.next_power_of_2(n)))
        _nearest[(n, b)](gram, scale, lengths, nearest, n, BLOCK=block)
        first = nearest.argmin(dim=-1)
    chosen = torch.empty(b, k, dtype=torch.long, device=features.device)
    block = max(16, triton.next_power_of_2(n))
    args = (gram, scale, lengths, first.contiguous(), chosen)
    if block <= RESIDENT:
        _greedy[(b,)](*args, n, k, SUM=mode == "maxsum", BLOCK=block, num_warps=warps(block))
    else:
        start = 0.0 if mode == "maxsum" else -torch.inf
        score = torch.full((b, n), start, dtype=torch.float32, device=features.device)
        score.masked_fill_(reference.absent(lengths, n, features.device), 1e30)
        _greedy_long[(b,)](*args, score, n, k, SUM=mode == "maxsum", BLOCK=RESIDENT // 2, num_warps=16)
    return chosen
