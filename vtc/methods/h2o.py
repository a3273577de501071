"""H2O: heavy hitters and recent tokens stay in the cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.cache import CacheMethod, with_latest
from vtc.methods.base.method import Paper
from vtc.methods.shared.cached import scope_signals, with_recent
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class H2O(CacheMethod):
    """The most attended so far, the most recent.

    Keeps the tokens that have received most attention so far, and the most recent ones.

    Source: arXiv 2306.14048, section 4: in each layer, half of the budget goes to heavy hitters by accumulated
    attention, half to the latest tokens; in each step, one token goes. That is `scope="all", every=1` with an int for
    `keep`; by default tokens go once, after the prefill. Attention is summed over all queries that can see a token, so
    earlier tokens have more to sum; of an odd budget, the odd token is a heavy hitter.

    Deviations: the choice is one per layer, by the mean over heads; one per head, as in the paper, is `per_head=True`
    and keeps other tokens. Query heads that share keys are heard as their mean. The released code counts the token to
    come among the latest ones; this does not.

    Args:
        recent: share of the budget for the latest tokens; None = 0.5 with text among them, 0 among visual tokens, whose
            order is that of reading a picture.
        corrected: whether scores are means over the queries that can see a token, which earlier ones have more of;
            False = sums, as in the paper.
        per_head: whether each KV head chooses for itself.
    """

    name = "h2o"
    keep: int | float = 0.5
    recent: float | None = None
    corrected: bool = False
    per_head: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    needs = ("attention_record", "cached_visual", "seen_by")
    window = None
    stacks = True
    paper = Paper("H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", "2306.14048")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent is not None:
            check_number(self.recent, "recent", 0, below=1, what="a share of the kept tokens")

    def requires(self) -> tuple[str, ...]:
        return ("attention_record", *scope_signals(self), *(("seen_by",) if self.corrected else ()))

    def score(self, tokens: VisualTokens) -> Tensor:
        record = tokens.signal("attention_record")
        if self.corrected:
            record = record / tokens.signal("seen_by")
        if self.recent is not None and self.scope == "visual":
            return with_latest(record, int(self.recent * self.count(tokens)))
        share = 0.5 if self.recent is None else self.recent
        return with_recent(self, tokens, record, int(share * self.count(tokens)))
