"""D2O: heavy hitters stay, what is similar enough is merged into them, and peaked layers hold less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.held import Held
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper
from vtc.methods.shared.cached import kept_mask, merged, nearest, scope_signals, shared_out, with_recent
from vtc.signals import VisualTokens

WEIGHTS = ("exp", "released")


@dataclass(frozen=True, kw_only=True)
class D2O(CacheMethod):
    """Heavy hitters; what is similar joins them.

    Layers whose attention varies much hold less. In each, the most attended tokens and the latest stay; of the others,
    those whose key is similar enough to one that stays are merged into it.

    Source: arXiv 2406.13035, section 3: each head's attention, summed over queries, is scaled for each token from its
    least to its largest among the heads; the layer's f is its variance over tokens, mean over heads, and budgets go
    with the softmax of -f over layers, from 1 % of the tokens to all. The threshold is the mean over the tokens that go
    of their largest cosine with one that stays. A token that joins has the weight exp(cosine), one that stays exp(1).
    The form of the prompt; with scope="all", half the budget is for the latest (`recent`).

    Deviations: while decoding (`every`), each choice has a threshold of its own, which is no running mean. KV heads
    choose, by the mean over the query heads that share them, and each has a threshold of its own, where the released
    code has one for all. Budgets are whole numbers that add up to `keep` in each layer; the paper's first two layers
    and its last, which hold everything, are `spared=True`, and come on top. Keys are compared and merged before their
    rotation to a position; as released, as they are cached, it is `rotated=True`.

    Args:
        recent: share of the budget for the latest tokens, where text is among them.
        layered: whether budgets differ between layers.
        spared: whether the first two layers and the last hold everything.
        weights: "exp" as in the paper, or "released": the cosine for those that join, 1 for the one that stays, and
            divided by their number, which shortens what is merged.
        rotated: whether keys are compared and merged as they are cached.
        per_head: whether each KV head chooses for itself; False = the mean over heads chooses for all.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "d2o"
    keep: int | float = 0.5
    recent: float = 0.5
    layered: bool = True
    spared: bool = False
    weights: str = "exp"
    rotated: bool = False
    per_head: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    sinks: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    window = None
    merges = True
    needs = ("attention_record", "cached_visual", "cached_keys", "plain_keys")
    paper = Paper("D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of LLMs", "2406.13035")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.recent, "recent", 0, below=1, what="a share of the kept tokens")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights={self.weights!r} is not one of {', '.join(WEIGHTS)}.")

    def requires(self) -> tuple[str, ...]:
        return ("attention_record", *scope_signals(self), "cached_keys" if self.rotated else "plain_keys")

    def layer_budgets(self, layers: Sequence[VisualTokens]) -> Sequence[int] | None:
        if not self.layered and not self.spared:
            return None
        n, count, depth = layers[0].features.shape[0], self.count(layers[0]), layers[0].depth
        whole = [self.spared and tokens.layer in (0, 1, depth - 1) for tokens in layers]
        apart = [tokens for tokens, all_of_it in zip(layers, whole, strict=True) if not all_of_it]
        if not apart:
            return [n] * len(layers)
        spread = torch.stack([_variance(tokens.signal("attention_record")) for tokens in apart])
        share = (-spread if self.layered else torch.zeros_like(spread)).softmax(dim=0)
        parts = iter(shared_out(share.tolist(), count * len(apart), max(1, round(0.01 * n)), n))
        return [n if all_of_it else next(parts) for all_of_it in whole]

    def score(self, tokens: VisualTokens) -> Tensor:
        late = int(self.recent * self.count(tokens))
        return with_recent(self, tokens, tokens.signal("attention_record"), late)

    def merge(self, tokens: VisualTokens, kept: Held) -> Held:
        similar, column = nearest(tokens.signal("cached_keys" if self.rotated else "plain_keys"), kept)
        goes = ~kept_mask(kept)
        mean = (similar * goes).sum(dim=1, keepdim=True) / goes.sum(dim=1, keepdim=True).clamp(min=1)
        joins = goes & (similar >= mean)
        if self.weights == "exp":
            return merged(kept, column, joins, similar.exp(), self.rotated, torch.e)
        held = merged(kept, column, joins, torch.ones_like(similar), self.rotated)
        assert held.keys is not None
        share = torch.where(goes, similar, 1.0) * held.keys
        return Held(held.anchor, held.total, held.source, share, share, self.rotated)


def _variance(record: Tensor) -> Tensor:
    """f of a layer: `record` [G, N] scaled for each token from its least to its largest head; its variance over tokens,
    mean over heads. One head for all has none."""
    if record.dim() == 1:
        return record.new_zeros(())
    low, high = record.amin(dim=0), record.amax(dim=0)
    scaled = (record - low) / (high - low).clamp(min=torch.finfo(record.dtype).tiny)
    return scaled.var(dim=1, correction=0).mean()
