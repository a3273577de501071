"""After EMS: tokens that matter stay, the next ones are merged into them, the rest goes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.held import Held
from vtc.methods.base.cache import CacheMethod, top_of_each
from vtc.methods.base.method import Paper
from vtc.methods.shared.cached import kept_mask, merged, nearest, scope_signals, with_recent
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class EMS(CacheMethod):
    """The important stay, the next best join them.

    Each head keeps the tokens with the highest scores and merges the next ones into those, where keys and values are
    alike; all others go.

    Source: after arXiv 2412.08521, section 3, whose code is not public and of whose formulas we know the form alone:

        score    the larger of two, both made to have the same mean: attention over all queries, corrected for that
                 earlier tokens are seen by more (here: its mean), and attention of the last queries
        joins    the token goes to the centre of the largest product of the cosines of keys and of values, each at least
                 0, if that is at least `threshold`; else to none (the paper's zero class)
        merge    means by score, of values, and of the directions of keys; a centre's key keeps its norm

    How many are merged besides the centres, `threshold`, and that the window stays where text is chosen among, is ours.
    KV heads choose, by the mean over the query heads that share them.

    Args:
        window: how many of the last queries are the local ones.
        joining: how many tokens may join, as a multiple of those that stay.
        threshold: least product of cosines with which one does.
        rotated: whether keys are compared and merged as they are cached; False = before their rotation to a position.
        per_head: whether each KV head chooses for itself; False = the mean over heads chooses for all.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "ems"
    keep: int | float = 0.5
    window: int = 32  # pyright: ignore[reportIncompatibleVariableOverride]
    joining: float = 1.0
    threshold: float = 0.6
    rotated: bool = False
    per_head: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    sinks: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    merges = True
    needs = (
        "attention_record",
        "late_record",
        "seen_by",
        "cached_visual",
        "cached_keys",
        "plain_keys",
        "cached_values",
    )
    paper = Paper("EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression", "2412.08521")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.window, "window", 1, integer=True, what="a number of queries")
        check_number(self.joining, "joining", 0, what="a multiple of the tokens that stay")
        check_number(self.threshold, "threshold", 0, 1, what="a product of cosines")

    def queries(self) -> None:
        return None

    def late_queries(self) -> int:
        return self.window

    def requires(self) -> tuple[str, ...]:
        keys = "cached_keys" if self.rotated else "plain_keys"
        return ("attention_record", "late_record", "seen_by", *scope_signals(self), keys, "cached_values")

    def importance(self, tokens: VisualTokens) -> Tensor:
        """[N] or [G, N], before sinks and window are raised."""
        spread = tokens.signal("attention_record") / tokens.signal("seen_by")
        late = tokens.signal("late_record")
        tiny = torch.finfo(late.dtype).tiny
        return spread.maximum(
            late * spread.mean(dim=-1, keepdim=True) / late.mean(dim=-1, keepdim=True).clamp(min=tiny)
        )

    def score(self, tokens: VisualTokens) -> Tensor:
        return with_recent(self, tokens, self.importance(tokens), self.window)

    def merge(self, tokens: VisualTokens, kept: Held) -> Held:
        keys, values = tokens.signal("cached_keys" if self.rotated else "plain_keys"), tokens.signal("cached_values")
        score = self.importance(tokens).view(kept.heads, kept.total)
        mask, next_best = kept_mask(kept), torch.zeros_like(score, dtype=torch.bool)
        count = min(int(self.joining * self.count(tokens)), kept.total - int(mask.sum(dim=1).max()))
        if count:
            best = top_of_each(score.masked_fill(mask, -torch.inf), torch.full((kept.heads,), count))
            next_best.scatter_(1, best, True)
        similar, column = nearest(keys, kept, values)
        held = merged(kept, column, next_best & (similar >= self.threshold), score, self.rotated, score)
        assert held.source is not None
        assert held.values is not None
        return replace(held, keys=self._directed(keys, held, held.source, held.values))

    def _directed(self, keys: Tensor, held: Held, source: Tensor, share: Tensor) -> Tensor:
        """[G', N]: what keys count for, so that each sum of directions by `share` has the norm of its anchor; of heads
        that are alike, in the mean over heads."""
        norm = keys.float().norm(dim=-1).clamp(min=torch.finfo(torch.float).tiny)  # [G, N]
        source, share = source.expand(len(keys), -1), share.expand(len(keys), -1)
        parts = share[..., None] * F.normalize(keys.float(), dim=-1) * (source >= 0)[..., None]
        goes = source.clamp(min=0)[..., None].expand_as(parts)
        total = parts.new_zeros(len(keys), held.anchor.shape[1], parts.shape[-1]).scatter_add_(1, goes, parts)
        size = total.norm(dim=-1).clamp(min=torch.finfo(torch.float).tiny).gather(1, source.clamp(min=0))
        anchor = held.anchor.expand(len(keys), -1).clamp(min=0)
        own = norm.gather(1, anchor).gather(1, source.clamp(min=0))
        weight = torch.where(share == 1, 1.0, share / norm * own / size).masked_fill(source < 0, 0)
        return weight.mean(dim=0, keepdim=True) if held.heads == 1 else weight
