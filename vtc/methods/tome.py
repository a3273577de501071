"""ToMe and PiToMe: tokens that resemble each other merge, pair by pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Bipartite soft matching: half of the tokens look for the most similar of the other half; the best pairs merge.

    Source: arXiv 2210.09461, section 3. There a few pairs merge in every block of the vision tower, by their keys; here
    they do so in rounds behind the projector, by features, until the budget is met. A merged token is the mean of all
    tokens in it, as the paper's size-weighted means come to, and stands where the last of them absorbed the others.

    Args:
        rate: share of the tokens left that merges away in a round, at most 0.5.
    """

    name = "tome"
    keep: int | float = 0.25
    rate: float = 0.25
    merges = True
    positions_default = "compact"
    paper = Paper("Token Merging: Your ViT But Faster", "2210.09461")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.rate, "rate", above=0, high=0.5, what="the share of tokens that merge away into others")

    def _margin(self) -> float | None:
        return None

    def select(self, tokens: VisualTokens) -> Selection:
        features, k = tokens.features, self.count(tokens)
        n = len(features)
        anchor = torch.arange(n, device=features.device)
        source, now = anchor, features
        while len(anchor) > k:
            left = len(anchor)
            merged = min(left - k, max(1, int(self.rate * left)))
            target = ops.bipartite_match(now.unsqueeze(0), merged, self._margin())[0]
            stays = (target == torch.arange(left, device=target.device)).nonzero()[:, 0]
            rank = torch.empty_like(target)
            rank[stays] = torch.arange(len(stays), device=target.device)
            anchor, source = anchor[stays], rank[target[source]]
            now = ops.segment_mean(features, source, len(anchor))
        return Selection.merge(anchor, source)


@dataclass(frozen=True, kw_only=True)
class PiToMe(ToMe):
    """As ToMe, but only tokens in crowds merge: those of highest energy; loners are protected.

    Source: arXiv 2405.16148, section 3.2. Energy is the mean over all tokens of ELU(cosine - margin). The paper lowers
    the margin from 0.9 to 0 with depth; behind the projector there is one, halfway.

    Args:
        margin: cosine above which tokens count as company.
    """

    name = "pitome"
    margin: float = 0.45
    paper = Paper("Accelerating Transformers with Spectrum-Preserving Token Merging", "2405.16148")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.margin, "margin", -1, 1, what="a cosine")

    def _margin(self) -> float | None:
        return self.margin
