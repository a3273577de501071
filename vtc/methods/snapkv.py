"""SnapKV: what the prompt's last queries attend to stays in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper
from vtc.methods.shared.cached import POOLS, holds_text, pooled, room, scope_signals
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class SnapKV(CacheMethod):
    """What the last queries attend to, pooled.

    Each KV head keeps the tokens that the last queries of the prompt attend to most, each taken with its neighbours.

    The window must be the question. Where the question is shorter than `window`, or stands before the picture, the
    window reaches into the picture, which then judges itself: say `window="text"`, which hears the text behind the
    pictures and nothing else.

    Source: arXiv 2404.14469, section 4 (observation window, pooling): that is `scope="all", sinks=0` with an int for
    `keep`; the window itself always stays. `weighted` is after ActQKV (arXiv 2502.13542), of which we know the abstract
    only: a query counts the more, the farther its hidden state is from the window's mean.

    Deviations: query heads that share keys are heard as their mean, as the paper's later code does it, and pooled after
    that. Neighbours are those among the tokens chosen among: with scope="visual" none of them is text. A budget below
    `sinks` and window has the sinks first, then the latest of the window.

    Args:
        window: how many of the prompt's last queries are heard, or "text": those of the text behind the pictures.
        kernel: over how many neighbours scores are pooled, an odd number; 1 = not at all.
        pool: "avg" or "max".
        weighted: whether queries count by how far their hidden states are from the mean.
        per_head: whether each KV head chooses for itself; False = the mean over heads chooses for all.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "snapkv"
    keep: int | float = 0.5
    window: int | str = 32  # pyright: ignore[reportIncompatibleVariableOverride]
    kernel: int = 5
    pool: str = "avg"
    weighted: bool = False
    per_head: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    sinks: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    needs = ("attention_record", "layer_record", "cached_visual")
    query_aware = True
    paper = Paper("SnapKV: LLM Knows What You are Looking for Before Generation", "2404.14469")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window != "text":
            check_number(self.window, "window", 1, integer=True, what='a number of queries, or "text"')
        check_number(self.kernel, "kernel", 1, integer=True, what="an odd number of neighbours")
        if not self.kernel % 2:
            raise ValueError(
                f"kernel={self.kernel} is even: a token and its neighbours on both sides are an odd number."
            )
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} is not one of {', '.join(POOLS)}.")

    @property
    def counts_queries(self) -> bool:
        """Whether it has to hear how long the window is, which stays itself."""
        return self.window == "text" and self.scope != "visual"

    def requires(self) -> tuple[str, ...]:
        counted = ("layer_record",) if self.counts_queries else ()
        return ("attention_record", *counted, *scope_signals(self))

    def layer_gain(self, rows: Tensor, visible: Tensor) -> Tensor | None:
        return (visible > 0).sum(dim=-1, keepdim=True).float() if self.counts_queries else None

    def query_weights(self, states: Tensor, real: Tensor) -> Tensor | None:
        if not self.weighted:
            return None
        share = real.float() / real.sum(dim=1, keepdim=True).clamp(min=1)
        mean = (states.float() * share[..., None]).sum(dim=1, keepdim=True)
        return (states.float() - mean).norm(dim=-1) * real

    def late(self, tokens: VisualTokens) -> int:
        """How many of the tokens are the window's own."""
        if not holds_text(self, tokens):
            return 0
        heard = int(tokens.signal("layer_record").max()) if self.counts_queries else int(self.window)
        return min(heard, tokens.features.shape[0])

    def score(self, tokens: VisualTokens) -> Tensor:
        record, late = tokens.signal("attention_record"), self.late(tokens)
        fits = room(self, tokens, late)
        before = pooled(record[..., : record.shape[-1] - late], self.kernel, self.pool)
        window = torch.full_like(record[..., :late], -torch.inf)
        window[..., late - fits :] = torch.inf
        return torch.cat([before, window], dim=-1)
