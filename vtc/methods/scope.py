"""SCOPE (method): what a token adds to how well the picture is stood for, times its saliency."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.greedy import GreedyMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class SCOPE(GreedyMethod):
    """Coverage of the picture, times saliency.

    Greedily the token that adds most to the coverage of all tokens, times its attention from CLS.

    Source: arXiv 2510.24214, section 3, and its released code at 6bf7306. A token is covered as well as its most
    similar chosen one covers it (cosine of what the vision tower makes of both, before the projector), and not below 0;
    the gain of a token is what it adds to the sum over all. The attention is that of the layer that the features come
    from. A tower without a CLS token gives received attention instead. Each crop chooses for itself, with its share of
    the budget. The code's additive mode is not offered. `scope` here is the option that all methods have.

    Args:
        alpha: exponent of the attention; 0 = coverage alone.
    """

    name = "scope"
    keep: int | float = 64
    alpha: float = 1.0
    objective = "coverage"
    needs = ("cls_attention", "tower_features")
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper("SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", "2510.24214")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.alpha, "alpha", 0, 100, what="an exponent")

    def similarity(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal("tower_features")

    def weight(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal("cls_attention").float().sum(dim=0) ** self.alpha
