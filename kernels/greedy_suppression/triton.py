"""Triton kernel of `greedy_suppression`: the Gram matrix by matmul, then all steps of one picture in one program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.greedy_diversity.reference import absent
from vtc.kernels.greedy_diversity.triton import gram_and_scale, to_sixteen, warps
from vtc.kernels.greedy_suppression import reference
from vtc.kernels.pictures import ranks

RESIDENT = 8192  # tokens whose places fit the registers of one program


@triton.jit(do_not_specialize=["k"])
def _suppression(gram, scale, places, group, threshold, chosen, apart, count, k, BLOCK: tl.constexpr):
    """`places` [B, N] is the order of all tokens; those that are passed over come `count` later, chosen ones never."""
    b = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    own = tl.load(scale + b * count + at, mask=at < count, other=0.0)
    of = tl.load(group + b * count + at, mask=at < count, other=-1)
    place = tl.load(places + b * count + at, mask=at < count, other=4 * BLOCK)
    above = tl.load(threshold + b)
    free = 0
    for step in range(0, k):
        first = tl.min(place, 0)
        pick = tl.min(tl.where(place == first, at, BLOCK - 1), 0)
        tl.store(chosen + b * k + step, pick.to(tl.int64))
        if first < count:
            ratio = own * tl.load(scale + b * count + pick)
            cosine = ratio * tl.load(gram + (b * count + pick) * count + at, mask=at < count, other=0.0)
            cosine = tl.where(ratio == 0, 0.0, cosine)  # not 0 * NaN
            like = (cosine > above) & (of == tl.load(group + b * count + pick)) & (place < count)
            place = tl.where(like, place + count, place)
            free += 1
        place = tl.where(at == pick, 4 * BLOCK, place)
    tl.store(apart + b, free.to(tl.int64))


def greedy_suppression(
    features: Tensor,
    k: int,
    weight: Tensor,
    threshold: Tensor,
    group: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if features.shape[1] > RESIDENT:
        return reference.greedy_suppression(features, k, weight, threshold, group, lengths)
    _, weight, (group,) = to_sixteen(lengths, weight, group)
    lengths, features, _ = to_sixteen(lengths, features)
    b, n = features.shape[:2]
    device = features.device
    gram, scale = gram_and_scale(features)
    empty = absent(lengths, n, device)
    places = ranks(weight if empty is None else weight.float().masked_fill(empty, torch.nan))
    if empty is not None:
        places = torch.where(empty, 2 * n + torch.arange(n, device=device), places)
    group = torch.zeros(b, n, dtype=torch.long, device=device) if group is None else group
    chosen = torch.empty(b, k, dtype=torch.long, device=device)
    apart = torch.empty(b, dtype=torch.long, device=device)
    block = max(16, triton.next_power_of_2(n))
    _suppression[(b,)](
        *(gram, scale, places.int(), group.int().contiguous(), threshold.float(), chosen, apart, n, k),
        BLOCK=block,
        num_warps=warps(block),
    )
    return chosen, apart
