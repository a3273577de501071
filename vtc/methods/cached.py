"""CacheMethod: base of the methods that drop rows of the KV cache, after the prefill or while decoding."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

from torch import Tensor

from vtc.budget import check_first
from vtc.methods.base import Method
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "compact":
            raise ValueError(
                f'{self.title} cannot renumber: keys are cached already rotated; use positions="original".'
            )
        if self.every is not None and (isinstance(self.every, bool) or not isinstance(self.every, Integral)):
            raise TypeError(f"every={self.every!r} is not a number of decode steps.")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every} is no number of decode steps: expected 1 or more, or None.")
        object.__setattr__(self, "first", check_first(self.first))

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
