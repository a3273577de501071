"""TransPrune: how much each layer transforms a token, and how much the instruction looks at it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class TransPrune(LayerMethod):
    """What layers change most and the text reads.

    Token transition variation (TTV) plus instruction-guided attention (IGA), each as a share of its sum.

    Source: arXiv 2507.20630, section 3; the paper's "High" configuration: after layers 7, 9 and 12 of 32 (counted from
    1), 7/8, 5/8 and 1/8 of the tokens stay. TTV of a module is |out|/|in| * exp(d) / sum(exp(d)), d from the cosine of
    its input and output, the sum over all tokens of the row; it is summed over attention and feed-forward modules from
    the first listed layer on. IGA is the attention of the text after the pictures, with the queries and keys of the
    layer that comes next. The released code takes the sum over all rows of a batch, and takes one row only; its text is
    what follows the picture, as here.

    Args:
        absolute: direction d = 1 - |cos|, as in the paper's equation; False = 1 - cos, as in the released code.
        ttv_only: leave IGA out (the paper's ablation).
    """

    name = "transprune"
    keep: int | float = 0.125
    layers: tuple[int | float, ...] = (7 / 32, 9 / 32, 12 / 32)
    absolute: bool = True
    ttv_only: bool = False
    shape = (0.875, 0.625, 0.125)
    needs = ("transition", "text_attention")
    stacks = True
    query_aware = True
    positions_default = "compact"
    paper = Paper("TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model", "2507.20630")

    def requires(self) -> tuple[str, ...]:
        return ("transition",) if self.ttv_only else self.needs

    def listens(self, depth: int) -> range:
        steps = self.steps(depth)
        return range(steps[0] - 1, steps[-1])

    def transition(self, ratio: Tensor, cosine: Tensor, real: Tensor) -> Tensor:
        direction = (1 - (cosine.abs() if self.absolute else cosine)).exp()
        return ratio * direction / (direction * real).sum(dim=1, keepdim=True)

    def score(self, tokens: VisualTokens) -> Tensor:
        variation = _share(tokens.signal("transition"))
        return variation if self.ttv_only else variation + _share(tokens.signal("text_attention").mean(dim=-2))


def _share(score: Tensor) -> Tensor:
    score = score.float()
    return score / score.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)
