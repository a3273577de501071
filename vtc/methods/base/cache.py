"""CacheMethod: base of the methods that drop or merge rows of the KV cache, after the prefill or while decoding.

A method is score x budget x what becomes of the rest, each of them one function that may be overridden:

    gain, query_weights    what a query adds to the record of each cached token
    score                  what is kept: [N], or [G, N] where each KV head chooses for itself (`per_head`)
    layer_budgets          how many tokens each layer holds; alike by default
    head_budgets           how many each head of a layer holds; alike by default
    merge                  what the tokens that stay make of those that go; nothing by default

ActiveMethod: of those that drop nothing, but let a decode step read a part of the rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.budget import check_layer, layer_number
from vtc.checks import check_number
from vtc.held import Held
from vtc.methods.base.method import Method, top_k
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class CacheMethod(Method):
    """Base of methods of the stage `cache`; they see, layer by layer, which tokens the cache holds.

    Keys are cached rotated, so tokens keep their positions (`positions="original"`).

    Args:
        keep: tokens left per image in each layer; with scope="all", tokens left per row.
        scope: "visual" drops visual tokens only, "all" text as well, together (the papers' own form), "apart" also, but
            each picture and the text of a row have budgets of their own.
        every: also choose again after every so many decode steps; None = after the prefill only.
        first: the first decoder layer (an int from 0, or a share of the depth) whose cache is touched.
    """

    every: int | None = None
    first: int | float = 0

    stage: ClassVar[str] = "cache"
    scopes: ClassVar[tuple[str, ...]] = ("visual", "apart", "all")
    scope_default: ClassVar[str] = "visual"
    #: which queries of the prompt the method hears: its last ones, so many; None = all of them, 0 = it needs no
    #: attention, "text" = those of the text behind the row's pictures (its last token, where there is none)
    window: ClassVar[int | Literal["text"] | None] = 0
    #: whether each KV head chooses for itself; its signals then have one more dimension G in front. A field of this
    #: name answers where it is an option
    per_head: ClassVar[bool] = False
    #: whether `head_budgets` may differ between heads; a field or a property answers where options decide
    uneven_heads: ClassVar[bool] = False
    #: whether what stays may stand for several tokens in the softmax (`Held.rows`)
    weighs: ClassVar[bool] = False
    #: the first tokens of a row, which are never dropped where text is chosen among; a field answers if it is an option
    sinks: ClassVar[int] = 0
    may_drop_all: ClassVar[bool] = False
    #: also, that the choice is made alike in every layer: `score` is asked for several layers at once, its signals are
    #: [layers, pictures, N] and so is what it returns, or it returns [N]; where `select` is the method's own and it
    #: hears no attention, that is asked once for all layers. False = it is asked layer by layer, with `tokens.layer`
    stacks: ClassVar[bool] = False

    @property
    def uneven_layers(self) -> bool:
        """Whether layers may hold unequally many tokens."""
        return type(self).layer_budgets is not CacheMethod.layer_budgets

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions == "compact":
            raise ValueError(
                f'{self.title} cannot renumber: keys are cached already rotated; use positions="original".'
            )
        if self.every is not None:
            check_number(self.every, "every", 1, integer=True, what="a number of decode steps (None = never again)")
        check_number(self.sinks, "sinks", 0, integer=True, what="a number of tokens")
        object.__setattr__(self, "first", check_layer(self.first, "first", least=0))

    def first_layer(self, depth: int) -> int:
        """`first`, 0-based, in a model of `depth` layers."""
        return 0 if self.first == 0 else layer_number(self.first, depth, self.title)

    def queries(self) -> int | Literal["text"] | None:
        """`window`, unless an option says it."""
        return self.window

    def late_queries(self) -> int:
        """How many of a forward's last queries are heard a second time, for the signal `late_record`; 0 = none."""
        return 0

    def gain(self, rows: Tensor, visible: Tensor) -> Tensor:
        """What some queries add to the record of each cached token.

        Args:
            rows: [..., R, K], attention of R queries; 0 where a query cannot see. The mean over heads, or, where each
                KV head chooses for itself, the mean over the query heads of a KV head.
            visible: LongTensor [..., R], how many tokens each query can see; 0 = no query.

        Returns:
            [..., K], summed over the queries.
        """
        return rows.sum(dim=-2)

    def layer_gain(self, rows: Tensor, visible: Tensor) -> Tensor | None:
        """What some queries add to the record of the layer as a whole, [..., c], c numbers that are summed over all
        queries; arguments as of `gain`. None = there is none."""
        return None

    def query_weights(self, states: Tensor, real: Tensor) -> Tensor | None:
        """What each query counts for: its attention is multiplied by this before `gain`. None = all alike.

        Args:
            states: [B, R, D], what goes into the layer's attention. real: BoolTensor [B, R], False = no query.

        Returns:
            [B, R], or None.
        """
        return None

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal("attention_record")

    def layer_budgets(self, layers: Sequence[VisualTokens]) -> Sequence[int] | None:
        """How many of some tokens each layer holds, `layers` being the same tokens in every layer that is touched, in
        order (`tokens.layer`); those who are alike in all layers say None."""
        return None

    def head_budgets(self, score: Tensor, count: int) -> Tensor | None:
        """LongTensor [G], how many tokens each KV head holds by `score` [G, N]; None = `count` each."""
        return None

    def merge(self, tokens: VisualTokens, kept: Held) -> Held:
        """What the tokens that stay make of those that go; `kept` as it is by default."""
        return kept

    def hold(self, tokens: VisualTokens) -> Held:
        """What a layer holds of some of its tokens: `select`, head by head where each head chooses for itself."""
        if not self.per_head:
            return self.merge(tokens, Held.of(self.select(tokens)))
        score, n, count = self.guarded(tokens, self.score(tokens)), tokens.features.shape[0], self.count(tokens)
        if score.dim() != 2 or score.shape[1] != n:
            raise ValueError(
                f"score(tokens) of {self.title}, whose heads choose for themselves, returned shape "
                f"{tuple(score.shape)}; expected one number per KV head and token, [G, {n}]."
            )
        budgets = self.head_budgets(score, count)
        return self.merge(tokens, Held(top_k(score, count) if budgets is None else top_of_each(score, budgets), n))

    def guarded(self, tokens: VisualTokens, score: Tensor) -> Tensor:
        """`score` [..., N], under which `sinks` come first where these are the first tokens of a row."""
        count = min(self.sinks, self.count(tokens)) if tokens.begins else 0
        if count:
            score = score.clone()
            score[..., :count] = torch.inf
        return score

    def select(self, tokens: VisualTokens) -> Selection:
        score = self.guarded(tokens, self.score(tokens))
        if self.per_head and score.dim() == 2:
            raise ValueError(
                f"{self.title} chooses for each KV head of a cache, and one Selection has no heads: give "
                "per_head=False."
            )
        return self._highest(tokens, score)


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


@dataclass(frozen=True, kw_only=True)
class PairedMethod(CacheMethod):
    """Base of methods under which two neighbouring layers of the cache share a part of what they hold; no token goes.

    Args:
        keep: 1.0, as all tokens stay.
        first: pairs are the last two decoder layers, the two before them and so on, as far as the deeper one is layer
            `first` (an int from 0, or a share of the depth) or lies behind it.
    """

    keep: int | float = 1.0
    first: int | float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.keep, float) or self.keep != 1.0 or self.every is not None:
            raise ValueError(f"{self.title} drops no tokens: leave keep= and every= out.")

    def keeps_all(self) -> bool:
        """Never: all tokens stay, but two layers share what they are made of."""
        return False

    def shared(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """What two layers share of keys, or of values.

        Args:
            one, other: [G, N, d], of the same tokens in the layer and in the next.

        Returns:
            directions [G, N, d] of length 1, each of which stands, at its own length, for the row in both layers; and
            which rows both layers keep as they are, BoolTensor [G, N].
        """
        raise TypeError(f"{type(self).__name__} does not define shared(one, other).")


def with_latest(record: Tensor, late: int) -> Tensor:
    """Scores [..., N] that put the latest `late` tokens before all others, and those as `record` has them."""
    if not late:
        return record
    score = record.clone()
    score[..., record.shape[-1] - late :] = torch.inf
    return score


def top_of_each(score: Tensor, counts: Tensor) -> Tensor:
    """The `counts` [G] highest of each row of `score` [G, N], ties to the lowest index: LongTensor [G, M] of ascending
    indices, where rows with fewer than M begin with -1."""
    order = score.detach().float().neg().argsort(dim=1, stable=True)  # upwards, as that puts NaN last
    most = int(counts.max())
    taken = torch.arange(most, device=score.device) < counts[:, None].to(score.device)
    return torch.where(taken, order[:, :most], -1).sort(dim=1).values
