"""DivPrune: keep the subset whose closest pair is farthest apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtc.methods.base.greedy import GreedyMethod
from vtc.methods.base.method import Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class DivPrune(GreedyMethod):
    """The subset whose closest pair is farthest.

    Max-min diversity in cosine distance, greedily (farthest first).

    Source: arXiv 2503.02175, algorithm 1. The first token is the one whose nearest neighbour is farthest; of two that
    are equally far, as of two tokens nearest to each other, the one with the lower index. A token is never chosen
    twice, also when all remaining ones are duplicates (the released code can repeat one).

    Half precision: cosines are always computed in fp32, from features in whatever dtype they come. The released code
    computes them in the model's dtype, where many distances round to the same number and one other choice early on
    changes all later ones: in bf16 it shares a twentieth to half of the set with its own run in fp32, which is vtc's.
    `python -m vtc.eval.bench.half` measures it; docs/fidelity.md has the table.

    Args:
        order: "raster" restores the tokens' original order (released code, slightly better); "selection" leaves the
            order of selection, which the paper's numbers were made with.
    """

    name = "divprune"
    keep: int | float = 0.098
    order: str = "raster"
    objective = "maxmin"
    positions_default = "compact"
    paper = Paper("DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", "2503.02175")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("raster", "selection"):
            raise ValueError(f'order={self.order!r} is not one of "raster", "selection".')

    def select_many(self, many: Sequence[VisualTokens]) -> list[Selection]:
        if self.order == "raster":
            return super().select_many(many)
        chosen = zip(self.choose(many), many, strict=True)
        return [Selection.prune(kept, len(tokens.features)) for kept, tokens in chosen]
