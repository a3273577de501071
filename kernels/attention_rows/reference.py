"""Softmax rows of chosen queries, averaged over heads."""

import torch
from torch import Tensor

BLOCK = 64  # queries at a time: memory is [B, H, BLOCK, N]


def attention_rows(
    q: Tensor,
    k: Tensor,
    scale: float,
    at: Tensor | None = None,
    seen: Tensor | None = None,
    since: Tensor | None = None,
) -> Tensor:
    """q [B, H, R, d], k [B, G, N, d] with G dividing H -> [B, R, N] in fp32; every row sums to 1.

    at: LongTensor [B, R], the last key each query may see (causal); None = all. seen: BoolTensor [B, N], keys that
    are there at all. since: LongTensor [B, R], the first key each query may see. A row that may see nothing is 0.
    """
    return torch.cat([rows for rows, _ in blocks(q, k, scale, at, seen, since, BLOCK)], dim=1)


def blocks(q: Tensor, k: Tensor, scale: float, at: Tensor | None, seen: Tensor | None, since: Tensor | None, size: int):
    """Yield (rows [B, r, N], allowed [B, r, N] or None) for `size` queries at a time."""
    b, heads, queries, _ = q.shape
    groups, n = k.shape[1], k.shape[2]
    shared, keys = heads // groups, k.float().transpose(-1, -2)  # [B, G, d, N]
    for start in range(0, queries, size):
        part = q[:, :, start : start + size].float() * scale
        # heads that share keys are rows of one product: there is no copy of the keys for each of them
        logits = (part.reshape(b, groups, -1, part.shape[-1]) @ keys).unflatten(2, (shared, -1))  # [B, G, H/G, r, N]
        allowed = None
        if at is not None:
            allowed = torch.arange(n, device=k.device) <= at[:, start : start + size, None]  # [B, r, N]
        if since is not None:
            later = torch.arange(n, device=k.device) >= since[:, start : start + size, None]
            allowed = later if allowed is None else allowed & later
        if seen is not None:
            allowed = seen[:, None].expand(b, part.shape[2], n) if allowed is None else allowed & seen[:, None]
        if allowed is None:
            yield logits.softmax(dim=-1).mean(dim=(1, 2)), None
            continue
        logits = logits.masked_fill_(~allowed[:, None, None], torch.finfo(logits.dtype).min)
        yield logits.softmax(dim=-1).mean(dim=(1, 2)) * allowed, allowed
