"""HoloV: each strip of the picture has a share of the budget, so that it is seen as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper, top_k
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class HoloV(Method):
    """CLS attention, with a budget for each strip.

    Strips of the picture share the budget by attention and variety; each keeps what CLS looks at.

    Source: arXiv 2510.02912, section 3, and its released code at 1d2e65e. Strips are stretches of tokens in raster
    order, as equal as can be. A token counts 1000 times its attention plus `alpha` times the variance of its cosines
    to the other tokens of the strip (after the projector), which is scaled so that both have the same mean; a strip's
    weight is the mean over its tokens. Shares are rounded down, and what is over goes one by one to the largest
    weights. What a strip has no tokens for goes on to the others in the same way, where the code fills up with zero
    vectors. Kept tokens stand in raster order; the code's order within a strip is by attention. A tower without a CLS
    token gives received attention instead. Each crop chooses for itself; the code cuts all crops of a picture, one
    behind the other, into the same strips (`scope="clip"`, but for the thumbnail's place).

    Args:
        strips: into which tokens are cut.
        alpha: how much variety counts beside attention.
    """

    name = "holov"
    keep: int | float = 64
    strips: int = 16
    alpha: float = 0.09
    needs = ("cls_attention",)
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper(
        "Don't Just Chase Highlighted Tokens in MLLMs: Revisiting Visual Holistic Context Retention", "2510.02912"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.strips, "strips", 1, integer=True, what="a number of strips")
        check_number(self.alpha, "alpha", 0, what="a weight")

    def select(self, tokens: VisualTokens) -> Selection:
        return self.select_many([tokens])[0]

    def select_many(self, many: Sequence[VisualTokens]) -> list[Selection]:
        seen = [self._strips(tokens) for tokens in many]
        weights = iter(torch.cat([own for _, _, own in seen]).tolist())  # waited for once
        found = []
        for tokens, (attention, strips, _) in zip(many, seen, strict=True):
            shares = _shares(self.count(tokens), [next(weights) for _ in strips], [len(strip) for strip in strips])
            kept = [strip[top_k(attention[strip], share)] for strip, share in zip(strips, shares, strict=True)]
            found.append(Selection.prune(torch.cat(kept), len(attention), ascending=True))
        return found

    def _strips(self, tokens: VisualTokens) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Attention [N], the tokens of each strip, and the strips' weights [P]."""
        attention = tokens.signal("cls_attention").float().sum(dim=0)
        attention = torch.where(attention.isfinite(), attention, 0.0)
        n = len(attention)
        strips = torch.arange(n, device=attention.device).tensor_split(min(self.strips, n))
        scores = _scores(tokens.features.detach(), attention, strips, self.alpha)
        return attention, strips, torch.stack([scores[strip].mean() for strip in strips])


def _scores(features: Tensor, attention: Tensor, strips: tuple[Tensor, ...], alpha: float) -> Tensor:
    """[N]: what each token counts in its strip."""
    unit = torch.nan_to_num(F.normalize(features.float(), dim=-1), nan=0.0)
    variance = torch.zeros_like(attention)
    for strip in strips:
        size = len(strip)
        if size > 2:
            cosine = (unit[strip] @ unit[strip].T).fill_diagonal_(0.0)
            mean = cosine.sum(dim=1, keepdim=True) / (size - 1)
            apart = (cosine - mean).fill_diagonal_(0.0)
            variance[strip] = apart.square().sum(dim=1) / (size - 1)
    attention = 1000 * attention
    spread = variance.abs().mean()
    scale = torch.where(spread > 0, attention.abs().mean() / spread, 0.0)
    return attention + alpha * scale * variance


def _shares(k: int, weights: list[float], sizes: list[int]) -> list[int]:
    """How many of k tokens each strip keeps, at most as many as it has.

    Example: 10 tokens for weights 5 3 2 and sizes 4 9 9: 5 3 2, of which the first can take 4; the one that is over
    goes to the next largest weight: 4 4 2.
    """
    total = sum(weights)
    parts = [weight / total if total > 0 else 1 / len(weights) for weight in weights]
    shares = [min(size, int(part * k)) for part, size in zip(parts, sizes, strict=True)]
    falling = sorted(range(len(parts)), key=lambda i: (-parts[i], i))
    while (over := k - sum(shares)) > 0:
        for i in [i for i in falling if shares[i] < sizes[i]][:over]:
            shares[i] += 1
    return shares
