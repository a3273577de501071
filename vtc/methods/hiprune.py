"""HiPrune: anchors of a middle layer with their neighbours, and what the last layer looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.kernels.pictures import ranks
from vtc.methods.base.method import Method, Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import upload


@dataclass(frozen=True, kw_only=True)
class HiPrune(Method):
    """Objects, their edges, and global tokens.

    The tokens that most attention goes to in a middle layer, their neighbours, and those of the last layer.

    Source: arXiv 2508.00553, section 3, and its released code at 6e83a12. Anchors are the round(k alpha / 5) tokens
    with most received attention in the object layer; the tokens above, below, left and right of them are kept, too.
    The rest are those with most received attention in the layer that the features come from. The code takes the
    neighbours by their numbers, so that those at the end of a row wrap around to the next; here a neighbour is one on
    the grid. Where they are more than the budget, the neighbours of the strongest anchors come first. Each crop
    chooses for itself, with its share of the budget.

    Args:
        alpha: share of the budget that anchors and their neighbours have, about.
        object_layer: of the vision tower, from which anchors come: an int (0-based), or the share of the depth that
            ends with it, as 9 of 24 for LLaVA (the default), 16 of 32 for Qwen2.5-VL.
    """

    name = "hiprune"
    keep: int | float = 64
    alpha: float = 0.1
    object_layer: int | float = 9 / 24
    needs = ("received_attention", "grid")
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper(
        "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models", "2508.00553"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.alpha, "alpha", 0, 1, what="a share of the budget")
        what = "a layer's number (an int), or a share of the tower's depth in (0, 1] (a float)"
        if isinstance(self.object_layer, int):
            check_number(self.object_layer, "object_layer", 0, integer=True, what=what)
        else:
            check_number(self.object_layer, "object_layer", above=0, high=1, what=what)

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        own = self.object_layer
        layer = own if isinstance(own, int) else max(0, round(own * depth) - 1)
        if layer >= depth:
            raise ValueError(f"object_layer={own} is outside the vision tower's {depth} layers.")
        return layer, feature_layer

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = len(tokens.features), self.count(tokens)
        attention = tokens.signal("received_attention").float()  # [2, N], or the same layer once
        early, late = attention[0], attention[-1]
        anchors = early.neg().argsort(stable=True)[: round(k * self.alpha / 5)]
        wanted = torch.cat([anchors, _neighbours(tokens)[anchors].flatten()])
        place = torch.arange(len(wanted), device=late.device)
        first = place.new_full((n + 1,), len(wanted)).scatter_reduce(0, wanted, place, "amin")[:n]  # n: no neighbour
        order = torch.where(first < len(wanted), first, len(wanted) + ranks(late))  # all are different
        return Selection.prune(order.argsort()[:k].sort().values, n, ascending=True)


def _neighbours(tokens: VisualTokens) -> Tensor:
    """LongTensor [N, 4]: the token above, below, left and right of each; N where the grid ends or it has gone."""
    found = torch.full((tokens.total, 4), -1, dtype=torch.long)
    for tile in tokens.span.tiles:
        places = tile.indices()  # [t, h, w]
        found[places[:, 1:], 0], found[places[:, :-1], 1] = places[:, :-1], places[:, 1:]
        found[places[..., 1:], 2], found[places[..., :-1], 3] = places[..., :-1], places[..., 1:]
    near, rows = upload(found, tokens.index.device)[tokens.index], tokens.row_of
    there = torch.where(near >= 0, rows[near.clamp(min=0)], -1)
    return torch.where(there >= 0, there, len(tokens.features))
