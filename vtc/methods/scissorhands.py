"""Scissorhands: tokens that recent queries keep finding important stay in the cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper
from vtc.methods.shared.cached import scope_signals, with_recent
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Scissorhands(CacheMethod):
    """What recent queries kept attending to.

    Counts, over a window of recent queries, how often a token got more than an even share of the attention.

    Source: arXiv 2305.17118, section 4 (persistence of importance): a token is important to a query that sees t tokens
    if it gets more than 1/t; the least often important ones go, the latest stay. There is no public code.

    Deviations: the choice is one per layer, by the mean over heads; one per head, as in the paper, is `per_head=True`,
    where query heads that share keys vote as their mean. A query has no vote on tokens it cannot see, so those within
    the last `history` tokens can collect fewer votes than older ones. While decoding (`every`), each step adds its vote
    to those of the prompt, and none expires.

    Args:
        history: how many of the prompt's last queries vote.
        recent: how many of the latest tokens always stay; only where text is among them.
        per_head: whether each KV head chooses for itself.
    """

    name = "scissorhands"
    keep: int | float = 0.5
    history: int = 400
    recent: int = 10
    per_head: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    needs = ("attention_record", "cached_visual")
    stacks = True
    paper = Paper(
        "Scissorhands: Exploiting the Persistence of Importance Hypothesis for LLM KV Cache Compression", "2305.17118"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.recent, "recent", 0, integer=True, what="a number of tokens")
        check_number(self.history, "history", 1, integer=True, what="a number of queries that vote")

    def queries(self) -> int | None:
        return self.history

    def gain(self, rows: Tensor, visible: Tensor) -> Tensor:
        important = rows * visible[..., None] > 1  # more than 1 / t
        return important.sum(dim=-2).to(rows.dtype)

    def requires(self) -> tuple[str, ...]:
        return ("attention_record", *scope_signals(self))

    def score(self, tokens: VisualTokens) -> Tensor:
        return with_recent(self, tokens, tokens.signal("attention_record"), self.recent)
