"""Triton kernel of `gather_rows`: one launch copies the same rows of up to four tensors, whatever their dtypes."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS = 4  # tensors per launch
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _copy(x, out, row, b, source, count, shared, size, BLOCK: tl.constexpr):
    """Row `source` of picture b of x -> row `row` of out, this program's block of it."""
    start = tl.program_id(1) * BLOCK
    if start < size:
        at = start + tl.arange(0, BLOCK)
        origin = source if shared else b * count + source
        tl.store(out + row * size + at, tl.load(x + origin * size + at, mask=at < size, other=0), mask=at < size)


@triton.jit(do_not_specialize=["count", "slots"])
def _gather(
    index, x0, x1, x2, x3, out0, out1, out2, out3, size0, size1, size2, size3, count, slots,
    SHARED0: tl.constexpr, SHARED1: tl.constexpr, SHARED2: tl.constexpr, SHARED3: tl.constexpr,
    TENSORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b = row // slots
    source = tl.load(index + row)
    _copy(x0, out0, row, b, source, count, SHARED0, size0, BLOCK)
    if TENSORS > 1:
        _copy(x1, out1, row, b, source, count, SHARED1, size1, BLOCK)
    if TENSORS > 2:
        _copy(x2, out2, row, b, source, count, SHARED2, size2, BLOCK)
    if TENSORS > 3:
        _copy(x3, out3, row, b, source, count, SHARED3, size3, BLOCK)


def _words(x: Tensor) -> Tensor:
    """x [B, N, ...] as [B, N, W] words of at most 4 bytes: a copy moves bits, not numbers."""
    flat = x.contiguous().view(*x.shape[:2], -1)
    width = flat.shape[2] * flat.element_size()
    word = 4 if width % 4 == 0 else flat.element_size()
    return flat.view(WORDS[word])


def gather_rows(index: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    b, s = index.shape
    index = index.contiguous()
    done = [torch.empty(b, s, *x.shape[2:], dtype=x.dtype, device=x.device) for x in tensors]
    if not index.numel():
        return done
    for start in range(0, len(tensors), SLOTS):
        group = [_words(x) for x in tensors[start : start + SLOTS]]
        out = [_words(x) for x in done[start : start + SLOTS]]  # views: `done` is contiguous
        used = len(group)
        group, out = (x + x[:1] * (SLOTS - used) for x in (group, out))  # unused slots are not looked at
        sizes = [x.shape[2] for x in group]
        shared = {f"SHARED{i}": x.shape[0] == 1 and b > 1 for i, x in enumerate(group)}
        block = min(1024, triton.next_power_of_2(max(sizes)))
        grid = (b * s, triton.cdiv(max(sizes), block))
        count = group[0].shape[1]
        _gather[grid](index, *group, *out, *sizes, count, s, **shared, TENSORS=used, BLOCK=block)
    return done
