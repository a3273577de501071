"""What methods of the stage `cache` share: latest tokens, pooled records, budgets that add up, and merging by keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.held import Held
from vtc.methods.base.cache import CacheMethod, with_latest
from vtc.signals import VisualTokens

POOLS = ("avg", "max")


def scope_signals(method: CacheMethod) -> tuple[str, ...]:
    """What `holds_text` reads besides the scope."""
    return ("cached_visual",) if method.scope == "apart" else ()


def holds_text(method: CacheMethod, tokens: VisualTokens) -> bool:
    """Whether text is among the tokens; only then are the latest of them the latest of the conversation."""
    if method.scope == "apart":
        return not bool(tokens.signal("cached_visual").all())
    return method.scope == "all"


def room(method: CacheMethod, tokens: VisualTokens, wanted: int) -> int:
    """How many of `wanted` latest tokens fit into the budget behind the sinks."""
    sinks = method.sinks if tokens.begins else 0
    return max(0, min(wanted, method.count(tokens) - sinks))


def with_recent(method: CacheMethod, tokens: VisualTokens, record: Tensor, late: int) -> Tensor:
    """Scores [..., N] that put the latest `late` tokens first, as far as the sinks leave room, where they are text; for
    one picture, or several (`tokens.together`)."""
    raised = with_latest(record, room(method, tokens, late))
    if method.scope != "apart":
        return raised if method.scope == "all" else record
    return torch.where(tokens.signal("cached_visual").all(dim=-1, keepdim=True), record, raised)


def pooled(record: Tensor, kernel: int, pool: str) -> Tensor:
    """Each number of [..., N] with its `kernel - 1` neighbours, zeros beyond the ends: their mean or their maximum."""
    if kernel == 1 or not record.shape[-1]:
        return record
    flat = record.reshape(-1, record.shape[-1])
    take = F.avg_pool1d if pool == "avg" else F.max_pool1d
    return take(flat, kernel, stride=1, padding=kernel // 2).view(record.shape)


def shared_out(weights: Sequence[float], total: int, least: int, most: int) -> list[int]:
    """`total` split in proportion to `weights`, each part from `least` to `most`, whole numbers that add up to it.

    What a bound takes from one goes to the others in their proportions; where `total` is too small or too large for the
    bounds, all are at the bound.

    Example: 30 by weights 4, 1, 1 with parts from 1 to 15: 15, 8, 7 (in proportion it were 20, 5, 5).
    """
    number = len(weights)
    if total <= number * least or total >= number * most:
        return [least if total <= number * least else most] * number
    weights = [max(weight, 1e-12) for weight in weights]
    low, high = 0.0, most / min(weights)
    for _ in range(100):
        scale = (low + high) / 2
        low, high = (low, scale) if sum(_clipped(weights, scale, least, most)) > total else (scale, high)
    exact = _clipped(weights, low, least, most)
    return rounded([total * part / sum(exact) for part in exact])


def rounded(exact: Sequence[float]) -> list[int]:
    """Numbers with a whole sum as whole numbers with that sum: the largest remainders go up, of equals the first."""
    parts = [math.floor(part + 1e-9) for part in exact]
    order = sorted(range(len(parts)), key=lambda i: (round(parts[i] - exact[i], 6), i))
    for i in order[: round(sum(exact)) - sum(parts)]:
        parts[i] += 1
    return parts


def _clipped(weights: Sequence[float], scale: float, least: int, most: int) -> list[float]:
    return [max(least, min(most, scale * weight)) for weight in weights]


# -- merging ---------------------------------------------------------------------------------------------------


def nearest(keys: Tensor, held: Held, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which kept token each token's key is most similar to, by cosine; of all heads alike, by their mean cosine.

    Args:
        keys: [G, N, d]. values: [G, N, d]; with them it is the product of both cosines, each at least 0.

    Returns:
        similarity [G', N] and column of `held.anchor` [G', N]; G' = 1 where all heads hold the same.
    """
    anchor = held.anchor.expand(keys.shape[0], -1).clamp(min=0)[..., None]
    units = [F.normalize(x.float(), dim=-1) for x in (keys, values) if x is not None]
    best = []
    for parts in zip(*(unit.split(128, dim=1) for unit in units), strict=True):  # [G, N, M] at once may be large
        cosines = [
            part @ unit.gather(1, anchor.expand(-1, -1, unit.shape[-1])).transpose(1, 2)
            for part, unit in zip(parts, units, strict=True)
        ]
        cosine = cosines[0] if values is None else cosines[0].clamp(min=0) * cosines[1].clamp(min=0)
        cosine = cosine.mean(dim=0, keepdim=True) if held.heads == 1 else cosine
        best.append(cosine.masked_fill(held.anchor[:, None] < 0, -torch.inf).max(dim=2))
    return torch.cat([found.values for found in best], dim=1), torch.cat([found.indices for found in best], dim=1)


def kept_mask(held: Held) -> Tensor:
    """BoolTensor [G', N]: which tokens each head keeps."""
    mask = torch.zeros(held.heads, held.total + 1, dtype=torch.bool, device=held.anchor.device)
    return mask.scatter(1, torch.where(held.anchor < 0, held.total, held.anchor), True)[:, :-1]


def own_column(held: Held, column: Tensor) -> Tensor:
    """`column` [G', N], where kept tokens have their own column of `held.anchor`."""
    numbers = torch.arange(held.anchor.shape[1], device=held.anchor.device).expand_as(held.anchor)
    wide = F.pad(column, (0, 1)).scatter(1, torch.where(held.anchor < 0, held.total, held.anchor), numbers)
    return wide[:, :-1]


def sums(held: Held, source: Tensor, weight: Tensor) -> Tensor:
    """[G', N]: for each token, the sum of `weight` [G', N] over all that go where it goes; 0 for those that go."""
    goes = source < 0
    total = torch.zeros(held.heads, held.anchor.shape[1], dtype=weight.dtype, device=weight.device)
    total.scatter_add_(1, source.clamp(min=0), weight.masked_fill(goes, 0))
    return total.gather(1, source.clamp(min=0)).masked_fill(goes, 0)


def merged(held: Held, column: Tensor, joins: Tensor, weight: Tensor, rotated: bool, own: float | Tensor = 1.0) -> Held:
    """`held`, in which tokens `joins` are taken in by `column`, as means of keys and values by `weight`.

    Args:
        column, joins, weight: [G', N]; `joins` and `weight` of tokens that are kept do not matter.
        own: weight of the kept tokens.
    """
    kept = kept_mask(held)
    source = torch.where(kept | joins, own_column(held, column), -1)
    share = torch.where(kept, torch.as_tensor(own, dtype=weight.dtype, device=weight.device), weight)
    share = share.masked_fill(source < 0, 0)
    share = share / sums(held, source, share).clamp(min=torch.finfo(share.dtype).tiny)
    return replace(held, source=source, keys=share, values=share, rotated=rotated)
