"""ToMe and PiToMe: tokens that resemble each other merge, pair by pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.encoder import BlockTokens, Joined, MergingMethod
from vtc.methods.base.method import Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens

ORDERS = ("raster", "released")
MODES = ("protected", "bipartite", "released")


@dataclass(frozen=True, kw_only=True)
class Rounds(MergingMethod):
    """Base of methods that merge pairs of similar tokens, round by round, until the budget is met.

    Args:
        rate: at the stage "input", the share of the tokens left that merges away in a round, at most 0.5.
    """

    keep: int | float = 0.25
    rate: float = 0.25
    positions_default = "compact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.rate, "rate", above=0, high=0.5, what="the share of tokens that merge away into others")

    def round(self, tokens: Tensor, merged: int) -> tuple[Tensor, Tensor]:
        """One round among `tokens` [N, D], of which `merged` go.

        Returns:
            LongTensor [N], which one each joins (itself if it stays); [N - merged], those that stay, in the order in
            which they meet the next round.
        """
        raise TypeError(f"{type(self).__name__} does not define round(tokens, merged).")

    def select(self, tokens: VisualTokens) -> Selection:
        features, k = tokens.features, self.count(tokens)
        anchor = torch.arange(len(features), device=features.device)
        source, now = anchor, features
        while len(anchor) > k:
            left = len(anchor)
            target, stays = self.round(now, min(left - k, max(1, int(self.rate * left))))
            place = torch.empty_like(target)
            place[stays] = torch.arange(len(stays), device=target.device)
            anchor, source = anchor[stays], place[target[source]]
            now = ops.segment_mean(features, source, len(anchor))
        return Selection.merge(anchor, source).sorted()


@dataclass(frozen=True, kw_only=True)
class ToMe(Rounds):
    """Merges the most similar pairs.

    Bipartite soft matching: half of the tokens look for the most similar of the other half; the best pairs merge.

    Source: arXiv 2210.09461, section 3. At the stage "encoder" as there: some pairs merge in every block, between
    attention and feed-forward part, by the mean of their heads' keys (before any rotation), into size-weighted means of
    hidden states. The CLS token is counted when every second token is taken, and never merges; nor do registers and a
    distillation token. The number of pairs per block follows from `keep` and `schedule`, where the paper is given it.

    At the stage "input" pairs merge in rounds behind the projector, by features, until the budget is met. A merged
    token is the mean of all tokens in it, as size-weighted means of means come to. In both it stands where the last of
    its tokens absorbed the others.

    Args:
        order: in which the tokens meet the next round or block, where every second one looks for a partner: "raster",
            that of the picture; or "released", which the authors' code leaves behind: those that looked and did not
            merge (the best pair's first; ascending where there is a CLS token), then those that were looked at.
            Tokens come out in raster order either way.
    """

    name = "tome"
    order: str = "raster"
    paper = Paper("Token Merging: Your ViT But Faster", "2210.09461")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r} is not one of {', '.join(ORDERS)}.")

    def round(self, tokens: Tensor, merged: int) -> tuple[Tensor, Tensor]:
        if self.order == "raster":
            return _as_they_lie(ops.bipartite_match(tokens[None], merged, margin=None)[0], merged)
        looks, partner, rank = (x[0] for x in ops.bipartite_pairs(tokens[None]))
        by_rank = torch.empty_like(rank)
        by_rank[rank] = torch.arange(len(rank), device=rank.device)
        target = torch.arange(len(tokens), device=tokens.device)
        target[looks[by_rank[:merged]]] = partner[by_rank[:merged]]
        return target, torch.cat([looks[by_rank[merged:]], torch.arange(1, len(tokens), 2, device=tokens.device)])

    @property
    def packs(self) -> bool:
        return self.order == "raster"

    def join(self, tokens: BlockTokens) -> Joined:
        keys, gone, prefix = tokens.keys, tokens.gone, tokens.prefix
        if self.order == "raster":
            return Joined(ops.bipartite_match(keys, gone, None, tokens.lengths, prefix))
        assert isinstance(gone, int)
        looks, partner, rank = ops.bipartite_pairs(keys, prefix)
        b, t = keys.shape[:2]
        by_rank = looks.scatter(1, rank, torch.arange(looks.shape[1], device=keys.device).expand(b, -1))
        goes, looked = by_rank[:, :gone], looks.gather(1, by_rank[:, gone:])
        own = torch.arange(t, device=keys.device).repeat(b, 1)
        target = own.scatter(1, looks.gather(1, goes), partner.gather(1, goes))
        if prefix:  # what does not merge comes last of those that look, and first of all
            looked = looked.sort(dim=1).values
        parts = [own[:, :prefix], looked[:, (prefix + 1) // 2 :], own[:, 1::2][:, prefix // 2 :]]
        return Joined(target, torch.cat(parts, dim=1))


@dataclass(frozen=True, kw_only=True)
class PiToMe(Rounds):
    """Merges crowds of like tokens, spares loners.

    As ToMe, but only tokens in crowds merge: those of highest energy; loners are protected.

    Source: arXiv 2405.16148, section 3.2. Energy is the mean over all patches of ELU(cosine - margin), with the cosines
    of keys at the stage "encoder". The paper lowers the margin from 0.9 to 0 with depth, which is done there; behind
    the projector there is one, halfway. Of the 2r patches of highest energy every second one joins the most similar of
    the others; the rest is protected. The released code merges otherwise in the first half of the blocks (`mode`), and
    by unweighted means without proportional attention in CLIP, which the paper does not say and is not done here.

    Args:
        margin: cosine above which tokens count as company; at the stage "encoder" the mean over the blocks, from twice
            that in the first one down.
        mode: at the stage "encoder", who may merge: "protected", the 2r patches of highest energy only; "bipartite",
            all of them, every second one in the order of energy looking among the others, of which the r best pairs
            merge as in ToMe; "released", bipartite in the first half of the blocks and protected in the second.
    """

    name = "pitome"
    margin: float = 0.45
    mode: str = "protected"
    paper = Paper("Accelerating Transformers with Spectrum-Preserving Token Merging", "2405.16148")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.margin, "margin", -1, 1, what="a cosine")
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is not one of {', '.join(MODES)}.")

    @property
    def packs(self) -> bool:
        return self.mode == "protected"

    def join(self, tokens: BlockTokens) -> Joined:
        keys, gone, prefix = tokens.keys[:, tokens.prefix :], tokens.gone, tokens.prefix
        margin = 2 * self.margin * (1 - tokens.block / tokens.depth)
        if self.mode == "protected" or (self.mode == "released" and 2 * tokens.block >= tokens.depth):
            target = ops.bipartite_match(keys, gone, margin, tokens.lengths)
        else:
            order = ops.energy(keys, margin).argsort(dim=1, descending=True, stable=True)
            ranked = keys.gather(1, order[..., None].expand_as(keys))
            target = ops.bipartite_match(ranked, gone, margin=None)  # of places in that order
            target = torch.empty_like(order).scatter_(1, order, order.gather(1, target))
        first = torch.arange(prefix, device=keys.device).expand(len(keys), -1)
        return Joined(torch.cat([first, target + prefix], dim=1))

    def round(self, tokens: Tensor, merged: int) -> tuple[Tensor, Tensor]:
        return _as_they_lie(ops.bipartite_match(tokens[None], merged, self.margin)[0], merged)


def _as_they_lie(target: Tensor, merged: int) -> tuple[Tensor, Tensor]:
    """`target` [N], and those that stay, all but `merged` of them, in the order in which they are."""
    joins = (target != torch.arange(len(target), device=target.device)).to(torch.uint8)
    return target, joins.argsort(stable=True)[: len(target) - merged]
