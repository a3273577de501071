"""LOOK-M: text stays in the cache, and what goes of the picture is merged into what stays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.held import Held
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper
from vtc.methods.shared.cached import (
    holds_text,
    kept_mask,
    merged,
    nearest,
    own_column,
    scope_signals,
    sums,
    with_recent,
)
from vtc.signals import VisualTokens

MERGES = ("pivot", "average", "weighted")


@dataclass(frozen=True, kw_only=True)
class LookM(CacheMethod):
    """Text first; the rest merged by similar keys.

    Heavy hitters by accumulated attention and the latest tokens stay, text before anything visual, and each token that
    goes is merged into the one that stays with the most similar key.

    Source: arXiv 2406.18139, section 3 (text-prior, and the three ways to merge; the first is the paper's best):

        average    the mean of a kept token and all that join it
        pivot      the same, where each that joins has been averaged with the kept one before
        weighted   the same, where each that joins is multiplied by its similarity, and so counts for less

    That is `scope="all"`, `sinks=0`; the paper's budget is half heavy hitters, half latest. Among visual tokens alone
    no text is put first.

    Deviations: query heads that share keys are heard as their mean. Among visual tokens the more attended come first,
    where the released code has them all alike. Keys are compared and merged before their rotation to a position and
    rotated to that of the token which takes them in; as released, as they are cached, it is `rotated=True`.

    Args:
        how: they are merged: "pivot", "average" or "weighted".
        recent: share of the budget for the latest tokens, where text is among them.
        rotated: whether keys are compared and merged as they are cached.
        per_head: whether each KV head chooses for itself; False = the mean over heads chooses for all.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "lookm"
    keep: int | float = 0.5
    how: str = "pivot"
    recent: float = 0.5
    rotated: bool = False
    per_head: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    sinks: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    window = None
    merges = True
    needs = ("attention_record", "cached_visual", "cached_keys", "plain_keys")
    paper = Paper(
        "LOOK-M: Look-Once Optimization in KV Cache for Efficient Multimodal Long-Context Inference", "2406.18139"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in MERGES:
            raise ValueError(f"how={self.how!r} is not one of {', '.join(MERGES)}.")
        check_number(self.recent, "recent", 0, below=1, what="a share of the kept tokens")

    def requires(self) -> tuple[str, ...]:
        visual = ("cached_visual",) if self.scope == "all" else scope_signals(self)
        return ("attention_record", *visual, "cached_keys" if self.rotated else "plain_keys")

    def score(self, tokens: VisualTokens) -> Tensor:
        record = tokens.signal("attention_record")
        if holds_text(self, tokens) and self.scope == "all":
            text = ~tokens.signal("cached_visual")
            record = record + text * (record.amax(dim=-1, keepdim=True) + 1)
        return with_recent(self, tokens, record, int(self.recent * self.count(tokens)))

    def merge(self, tokens: VisualTokens, kept: Held) -> Held:
        keys = tokens.signal("cached_keys" if self.rotated else "plain_keys")
        similar, column = nearest(keys, kept)
        everything, kind = torch.ones_like(column, dtype=torch.bool), self.how
        weight = torch.ones_like(similar) if kind == "average" else torch.full_like(similar, 0.5)
        if kind == "average":
            return merged(kept, column, everything, weight, self.rotated)
        source, mask = own_column(kept, column), kept_mask(kept)
        joined = sums(kept, source, (~mask).float())  # how many join where each goes
        own = 1 + joined / 2 if kind == "pivot" else torch.ones_like(similar)
        share = torch.where(mask, own, weight if kind == "pivot" else similar) / (1 + joined)
        return Held(kept.anchor, kept.total, source, share, share, self.rotated)
