"""CacheMethod: base of the methods that drop rows of the KV cache, after the prefill or while decoding.

ActiveMethod: of those that drop nothing, but let a decode step read a part of the rows only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.budget import check_layer, layer_number
from vtc.checks import check_number
from vtc.methods.base.method import Method
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class CacheMethod(Method):
    """Base of methods of the stage `cache`; they see, layer by layer, which tokens the cache holds.

    Keys are cached rotated, so tokens keep their positions (`positions="original"`).

    Args:
        keep: tokens left per image in each layer; with scope="all", tokens left per row.
        scope: "visual" drops visual tokens only, "all" text as well (the papers' own form).
        every: also choose again after every so many decode steps; None = after the prefill only.
        first: the first decoder layer (an int from 0, or a share of the depth) whose cache is touched.
    """

    every: int | None = None
    first: int | float = 0

    stage: ClassVar[str] = "cache"
    scopes: ClassVar[tuple[str, ...]] = ("visual", "all")
    scope_default: ClassVar[str] = "visual"
    #: how many of the prompt's last queries the method hears: None = all of them, 0 = it needs no attention
    window: ClassVar[int | None] = 0
    may_drop_all: ClassVar[bool] = False
    #: also, that the choice is made alike in every layer: `score` is asked for several layers at once, its signals are
    #: [layers, pictures, N] and so is what it returns, or it returns [N]; where `select` is the method's own and it
    #: hears no attention, that is asked once for all layers. False = it is asked layer by layer, with `tokens.layer`
    stacks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "compact":
            raise ValueError(
                f'{self.title} cannot renumber: keys are cached already rotated; use positions="original".'
            )
        if self.every is not None:
            check_number(self.every, "every", 1, integer=True, what="a number of decode steps (None = never again)")
        object.__setattr__(self, "first", check_layer(self.first, "first", least=0))

    def first_layer(self, depth: int) -> int:
        """`first`, 0-based, in a model of `depth` layers."""
        return 0 if self.first == 0 else layer_number(self.first, depth, self.title)

    def queries(self) -> int | None:
        """`window`, unless an option says it."""
        return self.window

    def gain(self, rows: Tensor, visible: Tensor) -> Tensor:
        """What some queries add to the record of each cached token.

        Args:
            rows: [B, R, K], attention of R queries (mean over heads); 0 where a query cannot see.
            visible: LongTensor [B, R], how many tokens each query can see; 0 = no query.

        Returns:
            [B, K], summed over the queries.
        """
        return rows.sum(dim=1)

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal("attention_record")


@dataclass(frozen=True, kw_only=True)
class ActiveMethod(CacheMethod):
    """Base of methods under which decode steps attend to a part of the cached visual tokens; the others rest.

    What rests is kept and can come back, so no memory is freed. The layer before `first` attends to everything and
    decides for all layers from `first` on.

    Args:
        keep: visual tokens of a row that stay active, a fraction or a count.
        first: the first decoder layer that attends to active tokens only, an int from 1 or a share of the depth.
    """

    keep: int | float = 0.3
    first: int | float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first == 0:
            raise ValueError(f"{self.title} cannot start at layer 0: the layer before has to see everything; give 1.")
        if self.every is not None or self.scope != "visual":
            raise ValueError(f"{self.title} chooses in every decode step, among visual tokens: leave every=, scope=.")

    def stale(self, before: Tensor, now: Tensor) -> Tensor:
        """BoolTensor [B]: rows that choose anew, from the attention in the step before and in this one, [B, K]."""
        return torch.ones(len(now), dtype=torch.bool, device=now.device)

    def reused(self, active: Tensor, visual: Tensor) -> Tensor:
        """What rows that do not choose anew attend to: `active` [B, K] of the step before, of the tokens `visual`."""
        return active

    def active(self, attention: Tensor, visual: Tensor) -> Tensor:
        """Which tokens are active: the highest `keep` of each row, ties to the lowest index.

        Args:
            attention: [B, K], mean over heads. visual: BoolTensor [B, K], the tokens to choose among.

        Returns:
            BoolTensor [B, K], False outside `visual`.
        """
        size = visual.sum(dim=1, keepdim=True)
        count = torch.full_like(size, self.keep) if isinstance(self.keep, int) else (self.keep * size.double()).round()
        order = attention.masked_fill(~visual, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        return visual & (rank < count.clamp(min=1))


def with_latest(record: Tensor, late: int) -> Tensor:
    """Scores [..., N] that put the latest `late` tokens before all others, and those as `record` has them."""
    if not late:
        return record
    score = record.clone()
    score[..., record.shape[-1] - late :] = torch.inf
    return score
