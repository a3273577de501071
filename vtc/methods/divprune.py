"""DivPrune: keep the subset whose closest pair is farthest apart."""

from __future__ import annotations

from dataclasses import dataclass

from vtc import ops
from vtc.methods.base import Method, Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """Max-min diversity in cosine distance, greedily (farthest first).

    Source: arXiv 2503.02175, algorithm 1. The first token is the one whose nearest neighbour is farthest. A token is
    never chosen twice, also when all remaining ones are duplicates (the released code can repeat one).

    Args:
        order: "raster" restores the tokens' original order (released code, slightly better); "selection" leaves the
            order of selection, which the paper's numbers were made with.
    """

    name = "divprune"
    keep: int | float = 0.098
    order: str = "raster"
    positions_default = "compact"
    paper = Paper("DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", "2503.02175")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("raster", "selection"):
            raise ValueError(f'order={self.order!r} is not one of "raster", "selection".')

    def select(self, tokens: VisualTokens) -> Selection:
        chosen = ops.greedy_diversity(tokens.features.unsqueeze(0), self.count(tokens), "maxmin")[0]
        if self.order == "raster":
            chosen = chosen.sort().values
        return Selection.prune(chosen, tokens.features.shape[0])
