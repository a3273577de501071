"""PruMerge: what stands out to CLS, and with it what is like it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper, rest_of, top_k
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class PruMerge(Method):
    """What stands out, with what is like it.

    Tokens that stand out to the CLS token, each with its nearest ones added, and one token for all the others.

    Source: arXiv 2403.15388, section 3, and its released code at 1ca8b2b. Attention is the CLS token's in the tower's
    last layer, heads not split. To a kept token is added the sum of its `neighbours` nearest others, kept or not (keys
    of that layer, by cosine), each times its attention; one last token is the sum of all that are not kept, times their
    attention. PruMerge+ (`plus`) keeps three times as many again, evenly spaced over the picture.

    Differences to the code: `keep` is met to the token (`exact_count`), where the paper keeps as many as there are
    outliers; tokens merge behind the projector, not before it; kept ones stand in raster order, the code's by falling
    attention; of any-resolution pictures, unknown to the paper, each crop chooses for itself. A tower without a CLS
    token gives received attention instead. Where a model adds features of the tower in later layers (DeepStack), each
    token there counts once, in the kept one that is nearest, or in the last, which stands at the highest attention that
    is not kept.

    Args:
        plus: whether three quarters of what is kept are spaced evenly (PruMerge+); with exact_count over the others.
        neighbours: how many tokens are added to a kept one.
        exact_count: False = as the code: kept are the outliers of attention (above the third quartile by 1.5 times the
            distance of the quartiles), with `plus` a third of a step, 1 / share of outliers, apart. `keep` is a limit
            then; 1.0 is none.
    """

    name = "prumerge"
    keep: int | float = 32
    plus: bool = False
    neighbours: int = 32
    exact_count: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    needs = ("joined_cls_attention", "joined_keys")
    merges = True
    appends = True
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper("LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", "2403.15388")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.neighbours, "neighbours", 1, integer=True, what="a number of tokens")

    def keeps_all(self) -> bool:
        """Not where outliers decide how much stays."""
        return self.exact_count

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return (depth - 1,)

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = len(tokens.features), self.count(tokens)
        if n == 1 or (self.exact_count and k == n):
            return Selection.identity(n, tokens.features.device)
        attention = tokens.signal("joined_cls_attention").detach()[0].float()
        attention = torch.where(attention.isfinite(), attention, 0.0)
        kept = self._kept(attention, max(1, min(k, n) - 1))
        return self._merged(tokens, kept, attention, last=k > 1)

    def _kept(self, attention: Tensor, room: int) -> Tensor:
        """Ascending indices, at most `room`."""
        n, device = len(attention), attention.device
        if self.exact_count:
            first = top_k(attention, max(1, round(room / 4)) if self.plus else room)
            spaced = rest_of(first, n)
        else:
            low, high = torch.quantile(attention, torch.tensor([0.25, 0.75], device=device))
            found = max(1, int((attention > high + 1.5 * (high - low)).sum()))
            first = top_k(attention, min(found, room))
            spaced = torch.arange(0, n - 1, max(1, n // found // 3), device=device)
            spaced = spaced[~torch.isin(spaced, first)] if self.plus else spaced[:0]
        some = min(len(spaced), room - len(first))
        spaced = spaced[torch.arange(some, device=device) * len(spaced) // max(1, some)]
        return torch.cat([first, spaced]).sort().values

    def _merged(self, tokens: VisualTokens, kept: Tensor, attention: Tensor, last: bool) -> Selection:
        """`kept` [M] of N tokens with what is nearest to each, and `last` the sum of the others."""
        n, m = len(attention), len(kept)
        keys = F.normalize(tokens.signal("joined_keys")[0].detach().float(), dim=-1)
        like = torch.nan_to_num(keys[kept] @ keys.T, nan=-2.0).scatter_(1, kept[:, None], -torch.inf)  # [M, N]
        near = top_k(like, min(self.neighbours, n - 1))
        taken = torch.zeros_like(like, dtype=torch.bool).scatter_(1, near, True)
        made_of = torch.where(taken, attention, 0.0).scatter_(1, kept[:, None], 1.0)
        owner = torch.where(taken, like, -torch.inf).argmax(dim=0)  # one each, for those who ask which
        owner = torch.where(taken.any(dim=0), owner, m if last else -1)
        owner = owner.index_copy(0, kept, torch.arange(m, device=kept.device))
        anchor = kept
        if last:
            rest = rest_of(kept, n)
            top = rest.gather(0, attention[rest].argmax(dim=0, keepdim=True))
            owner, anchor = owner.index_fill(0, top, m), torch.cat([kept, top])
            made_of = torch.cat([made_of, attention.index_fill(0, kept, 0.0)[None]])
        weight = torch.where(owner >= 0, made_of.gather(0, owner.clamp(min=0)[None])[0], 0.0)
        return Selection(anchor, owner, weight, (made_of @ tokens.features.float()).to(tokens.features))
