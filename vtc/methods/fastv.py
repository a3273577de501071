"""FastV: after two layers, keep what the last token looks at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class FastV(LayerMethod):
    """What the prompt's last token attends to.

    Top-k by the attention of the prompt's last token in the layer before.

    Source: arXiv 2403.06764, section 4.1: half of the tokens after layer 2 of 32. Kept tokens keep their positions, as
    in the released code.
    """

    name = "fastv"
    keep: int | float = 0.5
    layers: tuple[int | float, ...] = (1 / 16,)
    reads = "previous"
    shape = (0.5,)
    needs = ("last_attention",)
    stacks = True
    query_aware = True
    paper = Paper("An Image is Worth 1/2 Tokens After Layer 2", "2403.06764")

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal("last_attention")
