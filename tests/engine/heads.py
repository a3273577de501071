"""Cache methods of every kind: heads that choose for themselves, equally many or not; rows that take others in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtc.held import Held
from vtc.methods.base.cache import CacheMethod
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Even(CacheMethod):
    """Each head keeps what has received most attention in it."""

    keep: int | float = 0.4
    needs = ("attention_record",)
    window = None
    per_head: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class EvenTogether(Even):
    """The same, all layers and pictures at once."""

    stacks = True


@dataclass(frozen=True, kw_only=True)
class Uneven(Even):
    """The first head keeps one token more than half of its share, the others what is left."""

    uneven_heads = True

    def head_budgets(self, score: Tensor, count: int) -> Tensor:
        heads, n = score.shape
        first = min(n, count // 2 + 1)
        rest = [min(n, count + (j + 1) * (count - first) // heads) for j in range(1, heads)]
        return torch.tensor([first, *rest])


@dataclass(frozen=True, kw_only=True)
class ByLayer(CacheMethod):
    """Deeper layers keep less."""

    keep: int | float = 0.4
    needs = ("attention_record",)
    window = 5

    def layer_budgets(self, layers: Sequence[VisualTokens]) -> list[int]:
        return [max(1, self.count(tokens) + 1 - 2 * (tokens.layer or 0)) for tokens in layers]


def taken_in(kept: Held, values_only: bool, rotated: bool, weigh: bool) -> Held:
    """Every token that goes is taken in by the next one that stays, or by the last; two parts of what stays to one."""
    source, weight, rows = [], [], []
    for anchor in kept.anchor.tolist():
        goal = [next((m for m, a in enumerate(anchor) if a >= n), len(anchor) - 1) for n in range(kept.total)]
        sizes = [goal.count(m) for m in range(len(anchor))]
        source.append(goal)
        weight.append([(2.0 if n in anchor else 1.0) / (sizes[m] + 1) for n, m in enumerate(goal)])
        weight[-1] = [1.0 if sizes[m] == 1 else w for w, m in zip(weight[-1], goal, strict=True)]
        rows.append([float(max(1, size)) for size in sizes])
    device = kept.anchor.device
    values = torch.tensor(weight, device=device)
    return replace(
        kept,
        source=torch.tensor(source, device=device),
        values=values,
        keys=None if values_only else values,
        rotated=rotated,
        rows=torch.tensor(rows, device=device) if weigh else None,
    )


@dataclass(frozen=True, kw_only=True)
class MergesValues(Even):
    merges = True

    def merge(self, tokens: VisualTokens, kept: Held) -> Held:
        return taken_in(kept, True, False, False)


@dataclass(frozen=True, kw_only=True)
class MergesKeys(Even):
    merges = True

    def merge(self, tokens: VisualTokens, kept: Held) -> Held:
        return taken_in(kept, False, False, False)


@dataclass(frozen=True, kw_only=True)
class MergesCachedKeys(CacheMethod):
    """For all heads alike, keys as they are cached."""

    keep: int | float = 0.4
    needs = ("attention_record",)
    window = 5
    merges = True

    def merge(self, tokens: VisualTokens, kept: Held) -> Held:
        return taken_in(kept, False, True, False)


@dataclass(frozen=True, kw_only=True)
class Weighs(Uneven):
    """Heads of their own size, whose rows stand for as many tokens as they have taken in."""

    merges = True
    weighs = True

    def merge(self, tokens: VisualTokens, kept: Held) -> Held:
        return taken_in(kept, False, False, True)


KINDS: dict[str, CacheMethod] = {
    "heads, equally many": Even(),
    "heads, all layers together": EvenTogether(),
    "heads, each its own number": Uneven(),
    "layers, each its own number": ByLayer(),
    "values taken in": MergesValues(),
    "keys taken in": MergesKeys(),
    "keys taken in as cached": MergesCachedKeys(),
    "rows that weigh more": Weighs(),
}
