"""Triton kernel of `greedy_determinantal`: the Gram matrix by matmul, then all steps of one picture in one program.

What is left of every token stays in registers; the rows of the factor, of which a step reads all, in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.greedy_determinantal import lazy, reference
from vtc.kernels.greedy_diversity.reference import absent
from vtc.kernels.greedy_diversity.triton import gram_and_scale, to_sixteen, warps
from vtc.kernels.pictures import at_least_zero, ranks

RESIDENT = 8192  # tokens of which what is left fits the registers of one program


@triton.jit(do_not_specialize=["k", "deep"])
def _determinantal(
    gram, scale, square, behind, factor, chosen, count, k, deep, spanned, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):
    """`behind` [B, N], below 0, orders what the chosen ones span, and then what is no token of the picture."""
    b = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    own = tl.load(scale + b * count + at, mask=at < count, other=0.0)
    left = tl.load(square + b * count + at, mask=at < count, other=0.0)
    least = left * spanned
    last = tl.load(behind + b * count + at, mask=at < count, other=float("-inf"))
    done = 0
    for step in range(0, k):
        score = tl.where(left > least, left, last)
        pick = tl.min(tl.where(score == tl.max(score, 0), at, BLOCK - 1), 0)  # ties: the lowest
        tl.store(chosen + b * k + step, pick.to(tl.int64))
        top = tl.sum(tl.where((at == pick) & (left > least), left, 0.0), 0)
        if (top > 0) & (done < deep):
            ratio = own * tl.load(scale + b * count + pick)
            row = ratio * tl.load(gram + (b * count + pick) * count + at, mask=at < count, other=0.0)
            row = tl.where(ratio == 0, 0.0, row)  # not 0 * NaN
            for start in range(0, done, DEPTH):
                t = start + tl.arange(0, DEPTH)
                place = (b * deep + t) * count
                held = tl.load(
                    factor + place[:, None] + at[None, :], mask=(t < done)[:, None] & (at < count)[None, :], other=0.0
                )
                shared = tl.load(factor + place + pick, mask=t < done, other=0.0)
                row -= tl.sum(held * shared[:, None], 0)
            row = row / tl.sqrt(top)
            tl.store(factor + (b * deep + done) * count + at, row, mask=at < count)
            tl.debug_barrier()  # other threads read it in the next step
            left -= row * row
            done += 1
        left = tl.where(at == pick, 0.0, left)
        last = tl.where(at == pick, float("-inf"), last)


def depth(block: int) -> int:
    """Rows of the factor that are read at once: as many as fit the registers."""
    return 4 if block <= 4096 else 1


def greedy_determinantal(
    features: Tensor, k: int, weight: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    if features.shape[1] > RESIDENT:
        return reference.greedy_determinantal(features, k, weight, lengths)
    deep = min(k, *features.shape[1:])
    lengths, features, (weight,) = to_sixteen(lengths, features, weight)
    b, n = features.shape[:2]
    device = features.device
    gram, scale = gram_and_scale(features)
    worth = torch.ones(b, n, device=device) if weight is None else at_least_zero(weight)
    empty = absent(lengths, n, device)
    square = torch.where(scale > 0, worth.square(), 0.0)
    last = -1.0 - ranks(worth if empty is None else worth.masked_fill(empty, -1.0)).float()
    if empty is not None:
        square.masked_fill_(empty, 0.0)
    factor = torch.empty(b, deep, n, device=device)
    chosen = torch.empty(b, k, dtype=torch.long, device=device)
    block = max(16, triton.next_power_of_2(n))
    _determinantal[(b,)](
        *(gram, scale * worth, square, last, factor, chosen, n, k, deep, lazy.SPANNED),
        BLOCK=block,
        DEPTH=depth(block),
        num_warps=warps(block),
    )
    return chosen
