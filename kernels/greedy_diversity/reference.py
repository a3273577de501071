"""Greedy diversity: farthest-first (max-min) and max-sum diversification, from a Gram matrix, or lazily without one."""

import torch
from torch import Tensor

from vtc.kernels.greedy_diversity import lazy

LARGEST_GRAM = 4096  # tokens; beyond that the matrix is larger than the features
FEW = 40  # with N / FEW steps or fewer, lazy ones cost less than the matrix
BLOCK = 2**20  # products held at a time


def products(left: Tensor, right: Tensor) -> Tensor:
    """Products of all rows, [B, A, D] with [B, C, D] -> [B, A, C] in fp32.

    A GPU multiplies half-precision numbers as they are, which is many times faster: their products are exact in fp32.
    """
    if left.is_cuda and left.dtype != torch.float32:
        with torch.autocast("cuda", enabled=False):
            return torch.bmm(left, right.mT, out_dtype=torch.float32)
    return left.float() @ right.float().mT


def numbers(features: Tensor, exact: bool = False) -> tuple[Tensor, Tensor]:
    """(rows in fp32, 1 / norm [B, N]); a zero row, or one that holds NaN or infinity, becomes 0.

    Args:
        exact: leave a GPU's rows in their own precision, for `products`.
    """
    norms = torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32)
    x = features if exact and features.is_cuda else features.float()
    usable = norms.isfinite() & (norms > 0)
    if x.device.type != "cpu" or not bool(usable.all()):  # a GPU would have to be waited for
        x = torch.where(usable.unsqueeze(-1), x, 0.0)
        norms = torch.where(usable, norms, 1.0)
    return x, 1.0 / norms


def unit(features: Tensor) -> Tensor:
    """Rows scaled to length 1, in fp32; a zero row, or one that holds NaN or infinity, becomes 0."""
    x, scale = numbers(features)
    return x * scale.unsqueeze(-1)


def cosines(features: Tensor) -> Tensor:
    """[B, N, N] of features [B, N, D]; whichever is smaller, rows or their products, is brought to scale."""
    x, scale = numbers(features)
    if x.shape[1] < x.shape[2]:
        return (x @ x.transpose(-1, -2)).mul_(scale.unsqueeze(-1)).mul_(scale.unsqueeze(-2))
    x = x * scale.unsqueeze(-1)
    return x @ x.transpose(-1, -2)


def all_products(x: Tensor) -> Tensor:
    """[N, N] of rows x [N, D]: those below the diagonal are made, and what is above is a copy."""
    n = len(x)
    found, step = x.new_empty(n, n), max(96, -(-n // 8))
    for start in range(0, n, step):
        end = min(n, start + step)
        torch.mm(x[start:end], x[:end].T, out=found[start:end, :end])
        found[:start, start:end] = found[start:end, :start].T
    return found


def absent(lengths: Tensor | None, count: int, device: torch.device) -> Tensor | None:
    """BoolTensor [B, N], True for what fills up the shorter rows of a batch; None if nothing does."""
    return None if lengths is None else torch.arange(count, device=device) >= lengths.to(device)[:, None]


def most_isolated(x: Tensor, empty: Tensor | None, gram: Tensor | None) -> Tensor:
    """LongTensor [B], the token whose nearest neighbour is farthest; the Gram matrix loses its diagonal."""
    if gram is None:
        nearest = nearest_cosine(x, empty)
    else:
        gram.diagonal(dim1=-2, dim2=-1).fill_(-2.0)
        if empty is not None:
            gram.masked_fill_(empty[:, None, :], -2.0)
        nearest = gram.amax(dim=-1)
    if empty is not None:
        nearest.masked_fill_(empty, torch.inf)
    return nearest.argmin(dim=-1)


def nearest_cosine(x: Tensor, empty: Tensor | None) -> Tensor:
    """[B, N]: of rows x [B, N, D] of length 1 the largest product with another one that is not `empty` [B, N].

    Tile by tile, each pair once: what is largest in the rows of a tile of products is so for some tokens, what is
    largest in its columns for others.
    """
    b, n = x.shape[:2]
    step = max(1, int((BLOCK / b) ** 0.5))
    nearest = torch.full((b, n), -2.0, device=x.device)
    tiles = [slice(start, min(n, start + step)) for start in range(0, n, step)]
    for i, left in enumerate(tiles):
        for right in tiles[i:]:
            tile = x[:, left] @ x[:, right].transpose(-1, -2)
            if left == right:
                tile.diagonal(dim1=-2, dim2=-1).fill_(-2.0)
            if empty is not None:
                tile.masked_fill_(empty[:, left, None] | empty[:, None, right], -2.0)
            for part, dim in ((left, -1), (right, -2)):
                torch.maximum(nearest[:, part], tile.amax(dim=dim), out=nearest[:, part])
    return nearest


def greedy_diversity(
    features: Tensor, k: int, mode: str, first: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """features [B, N, D], first [B] or None, lengths [B] or None -> LongTensor [B, k], in order of selection.

    Ties go to the lowest index. A zero row, or one that holds NaN or infinity, is similar to nothing (cosine 0). Rows
    behind a picture's own length are chosen only after all others.
    """
    b, n = features.shape[:2]
    without = n > LARGEST_GRAM or (first is not None and k * FEW <= n)
    gram, x = (None, unit(features)) if without else (cosines(features), features)
    empty = absent(lengths, n, x.device)
    if first is None:
        first = most_isolated(x, empty, gram)
    if gram is None:
        sizes = [n] * b if lengths is None else lengths.tolist()
        return torch.stack([_lazily(*each, k, mode) for each in zip(x, sizes, first.tolist(), strict=True)])
    chosen = torch.empty(b, k, dtype=torch.long, device=x.device)
    rows = torch.arange(b, device=x.device)
    # Similarity to the chosen set, to be minimised: the largest (maxmin) or the sum (maxsum) over its members.
    score = torch.full((b, n), 0.0 if mode == "maxsum" else -torch.inf, device=x.device)
    if empty is not None:
        score.masked_fill_(empty, 1e30)  # behind all others, before what is chosen already
    pick = first
    for step in range(k):
        if step:
            pick = score.argmin(dim=-1)
        chosen[:, step] = pick
        similar = gram[rows, pick]
        score = score.add_(similar) if mode == "maxsum" else torch.maximum(score, similar, out=score)
        score.scatter_(1, pick[:, None], torch.inf)
    return chosen


def _lazily(x: Tensor, size: int, first: int, k: int, mode: str) -> Tensor:
    """LongTensor [k] of one picture's rows x [N, D], `size` of which are its own; those behind come last."""
    choose = lazy.maxsum if mode == "maxsum" else lazy.maxmin
    chosen = choose(x[:size], min(k, size), first)
    return torch.cat([chosen, torch.arange(size, size + k - len(chosen), device=x.device)])
