"""ToDRE: a diverse subset grown from a pivot token, and late in the language model none at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.budget import check_layer
from vtc.checks import check_number
from vtc.methods.base.greedy import GreedyMethod
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens

PIVOTS = ("cls", "random", "center", "farthest")


@dataclass(frozen=True, kw_only=True)
class ToDRE(GreedyMethod):
    """A diverse subset; none late if irrelevant.

    Token diversity before the language model, and a check of task relevance late in it.

    Source: arXiv 2505.18757. Version 2's algorithm 1 minimises the summed similarity to the chosen set (`maxsum`);
    version 1 calls it k-center, which is farthest-first (`kcenter`): both are offered. The pivot is the token with the
    highest CLS attention in the tower's last layer, taken from the thumbnail only where there is one (section 3.2).
    After 7/8 of the decoder layers all visual tokens go if text and picture no longer attend to each other: if both the
    share of the text's attention that falls on visual tokens and the share of theirs on the text are below `tau`
    (section 3.3). Causal attention makes the second 0 for text that follows the pictures.
    There is no released code. What the paper leaves open: kept tokens stand in their original order and keep their
    positions, ties go to the lowest index, a tower without a CLS token gives received attention instead (the paper:
    any pivot will do), and a check that falls between two layers is rounded, where the paper takes floor(7 L / 8); say
    `check=31` for 36 layers.

    Args:
        mode: "maxsum" or "kcenter".
        pivot: "cls", or the ablation's alternatives: "random" (seeded), "center" (the token most similar to the mean),
            "farthest" (the one least similar to the mean).
        seed: seed of pivot="random".
        tau: threshold of the relevance check; None = stage 1 alone.
        check: where the check is made: decoder layer, or share of the depth.
    """

    name = "todre"
    keep: int | float = 0.10
    mode: str = "maxsum"
    pivot: str = "cls"
    seed: int = 0
    tau: float | None = 0.10
    check: int | float = 7 / 8
    needs = ("cls_attention", "relevance")
    query_aware = True
    exact_count = False
    paper = Paper("ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance", "2505.18757")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.seed, "seed", integer=True)
        if self.mode not in ("maxsum", "kcenter"):
            raise ValueError(f'mode={self.mode!r} is not one of "maxsum", "kcenter".')
        if self.pivot not in PIVOTS:
            raise ValueError(f"pivot={self.pivot!r} is not one of {', '.join(PIVOTS)}.")
        check_layer(self.check, "check")
        if self.tau is not None:
            check_number(self.tau, "tau", 0, 1, what="a share of attention (None = no check)")
        object.__setattr__(self, "query_aware", self.tau is not None)
        object.__setattr__(self, "exact_count", self.tau is None)

    def parts(self) -> tuple[Method, ...]:
        if self.tau is None:
            return (self,)
        check = RelevanceCheck(tau=self.tau, layers=(self.check,), positions=self.positions)
        return replace(self, tau=None), check

    def keeps_all(self) -> bool:
        """Not with the check of relevance: it drops all visual tokens, whatever the budget."""
        return self.tau is None

    def requires(self) -> tuple[str, ...]:
        return ("cls_attention",) if self.pivot == "cls" else ()

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return (depth - 1,)

    @property
    def objective(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "maxmin" if self.mode == "kcenter" else "maxsum"

    def weight(self, tokens: VisualTokens) -> Tensor:
        """[N]: the pivot has most."""
        features = tokens.features
        if self.pivot == "cls":
            score = tokens.signal("cls_attention").sum(dim=0)  # [N]
            thumbnail = torch.zeros(tokens.total, dtype=torch.bool)
            for tile in tokens.span.tiles:
                if tile.role == "thumbnail":
                    thumbnail[tile.indices().flatten()] = True
            inside = thumbnail.to(score.device)[tokens.index]
            return score.masked_fill(~(inside | ~inside.any()), -torch.inf)
        if self.pivot == "random":
            pick = torch.randint(features.shape[0], (1,), generator=torch.Generator().manual_seed(self.seed))
            return torch.zeros(len(features), device=features.device).index_fill_(0, pick.to(features.device), 1.0)
        unit = F.normalize(features.float(), dim=-1)
        similarity = unit @ unit.mean(dim=0)
        return similarity if self.pivot == "center" else -similarity


@dataclass(frozen=True, kw_only=True)
class RelevanceCheck(LayerMethod):
    """ToDRE's second stage: all visual tokens or none."""

    keep: int | float = 1.0
    layers: tuple[int | float, ...] = (7 / 8,)
    tau: float = 0.10
    reads = "previous"
    shape = (0.5,)
    needs = ("relevance",)
    query_aware = True
    exact_count = False
    may_drop_all = True

    def select(self, tokens: VisualTokens) -> Selection:
        irrelevant = bool((tokens.signal("relevance") < self.tau).all())
        n = len(tokens.index)
        return Selection.prune(torch.arange(0 if irrelevant else n, device=tokens.index.device), n, ascending=True)
