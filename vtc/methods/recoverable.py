"""Recoverable Compression: tokens that the CLS token singles out, those the question brings back, the rest merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.budget import split_budget
from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper, rest_of, top_k
from vtc.methods.shared.outliers import count_outliers
from vtc.methods.shared.relevance import Scorer, judged
from vtc.selection import Selection
from vtc.signals import VisualTokens

LEAST = torch.finfo(torch.float32).min  # of what is no number, which ranks last


@dataclass(frozen=True, kw_only=True)
class Recoverable(Method):
    """Salient tokens, and those the text asks for.

    The vision tower's CLS token says what stays, the question brings tokens back, and a few tokens absorb the rest.

    Source: arXiv 2409.01179, section 3, and its released code. The visual set are the tokens with the highest attention
    of the CLS token in the tower's last block, heads not split; the text set the most relevant of those left. They stay
    as they are, in raster order. Of the rest, those with the highest attention become centres: to each is added the sum
    of its `neighbours` nearest others, each times its attention; nearest is what has the highest cosine of keys plus
    `guidance` times relevance. Centres may absorb each other, and a token may be absorbed several times. One last token
    is the sum of all others times their attention.

    Differences to the code: counts are exact shares of `keep`, which the paper does not have (`exact_count`); tokens
    merge behind the projector, not before it; of any-resolution pictures, unknown to the paper, each crop chooses for
    itself. The code encodes question (what stands before its first line break) and picture a second time with a CLIP
    pair, for a relevance of each patch: `scorer` brings such a judge, `vtc.OpenClipScorer(...).tokens_about(...)`.
    Without one the relevance is the cosine of a token and the mean input embedding of all text of the row, which is
    weak: it knows words, but nothing has trained it to find them in pictures. Rows without text keep visual tokens in
    its place. A tower without a CLS token gives received attention instead. Where a model adds features of the tower in
    later layers (DeepStack), each token there counts once, in the centre that is nearest, or in the last token, which
    stands where the highest attention is that no centre has. The code's other function (10 neighbours for outliers,
    both sets chosen among all tokens) is not offered.

    Args:
        recovered: with exact_count, share of the outputs that the text brings back.
        merged: with exact_count, share of the outputs that absorb the rest; the last of them is the sum of all.
        neighbours: how many tokens a centre absorbs.
        guided: whether the question counts at all; without it the visual set has the text's share.
        scorer: tokens -> relevance of each, a cosine, for instance; None = the model's own embeddings.
        guidance: weight of the relevance among neighbours; the code's 50 times cosines over the root of 768.
        normalise: divide outputs that absorb others by the sum of their weights (a centre's own is 1), so that they are
            as long as other tokens. The code does not.
        exact_count: False = as the code: the visual set is as large as the share of outliers in the attention (Local
            Outlier Factor above 1.5 among 20 neighbours), the text set likewise, in the relevance; there are as many
            centres per kept token as outliers per token of the rest (10 neighbours). `keep` is a limit then, to
            which the three are scaled down; 1.0 is none.
    """

    name = "recoverable"
    keep: int | float = 0.1
    recovered: float = 0.25
    merged: float = 0.15
    neighbours: int = 32
    guided: bool = True
    scorer: Scorer | None = None
    guidance: float = 50 * 768**-0.5
    normalise: bool = False
    exact_count: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    needs = ("joined_cls_attention", "joined_keys", "text")
    query_aware = True
    merges = True
    appends = True
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper(
        "Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information", "2409.01179"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.recovered, "recovered", 0, below=1, what="a share of the outputs")
        check_number(self.merged, "merged", 0, below=1, what="a share of the outputs")
        if self.recovered + self.merged >= 1:
            raise ValueError(
                f"recovered={self.recovered} and merged={self.merged} leave no share for the visual set: "
                "together they must be less than 1."
            )
        check_number(self.neighbours, "neighbours", 1, integer=True, what="a number of tokens")
        check_number(self.guidance, "guidance", what="a weight")
        if self.scorer is not None and not callable(self.scorer):
            raise TypeError(f"scorer={self.scorer!r} is not a function from VisualTokens to a relevance per token.")
        if self.scorer is not None and not self.guided:
            raise ValueError("scorer= says how relevant tokens are to the text, which guided=False leaves out.")
        object.__setattr__(self, "query_aware", self.guided)

    def keeps_all(self) -> bool:
        """Not where outliers decide how much stays."""
        return self.exact_count

    def requires(self) -> tuple[str, ...]:
        return self.needs if self.guided and self.scorer is None else self.needs[:2]

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return (depth - 1,)

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = len(tokens.features), self.count(tokens)
        if self.exact_count and k == n:
            return Selection.identity(n, tokens.features.device)
        if not tokens.separated:
            return self._choose(tokens, k)
        apart = tokens.separators
        patches, newlines = (~apart).nonzero()[:, 0], apart.nonzero()[:, 0]
        if not len(patches):
            return Selection.prune(newlines[:k], n, ascending=True)
        if self.exact_count and k >= len(patches):
            return Selection.prune(torch.cat([patches, newlines[: k - len(patches)]]).sort().values, n, ascending=True)
        return Selection.prune(patches, n).then(self._choose(tokens.after(patches, tokens.features[patches]), k))

    def _choose(self, tokens: VisualTokens, k: int) -> Selection:
        attention = tokens.signal("joined_cls_attention").detach()[0].float()  # [N]
        relevance = self._relevance(tokens)
        if self.exact_count:
            visual, recovered, merged = split_budget(k, [1 - self.recovered - self.merged, self.recovered, self.merged])
        else:
            visual, recovered, merged = _by_outliers(attention, relevance)
            if visual + recovered + merged > k:
                visual, recovered, merged = split_budget(k, [visual, recovered, merged])
        if relevance is None:
            visual, recovered = visual + recovered, 0
        if not visual + recovered:
            visual, merged = 1, max(0, merged - 1)
        kept = _both(attention, relevance, visual, recovered)
        if not merged:
            return Selection.prune(kept, len(attention), ascending=True)
        return self._absorbed(tokens, kept, merged, attention, relevance)

    def _relevance(self, tokens: VisualTokens) -> Tensor | None:
        """[N], or None where nothing is known of it."""
        if not self.guided:
            return None
        if self.scorer is None:
            words = tokens.signal("text").detach().float()
            if not len(words):
                return None
            features = tokens.features.detach().float()
            return (features @ F.normalize(words.mean(dim=0), dim=0)) / features.norm(dim=-1).clamp(min=1e-8)
        return judged(self.scorer, tokens)

    def _absorbed(
        self, tokens: VisualTokens, kept: Tensor, merged: int, attention: Tensor, relevance: Tensor | None
    ) -> Selection:
        """`kept` [M] of N tokens, and `merged` >= 1 outputs that absorb the rest: centres, then one more.

        Example: attention .4 .1 .3 .2 in the rest, two centres (the first and the third) and one neighbour each (the
        second for both). What outputs are made of:

            1    .1   0    0     first centre
            0    .1   1    0     second centre
            0    .1   0    .2    the last one, which stands at the fourth, as the highest of those no centre has
        """
        n, centres = len(attention), merged - 1
        rest = rest_of(kept, n)  # [R], more than `merged`
        weight = attention[rest]
        order = weight.neg().argsort(stable=True)  # highest first, ties to the lowest index, NaN last
        centre = order[:centres]
        like = self._likeness(tokens, rest, centre, relevance)  # [centres, R]
        near = top_k(like, min(self.neighbours, len(rest) - 1))
        taken = torch.zeros(merged, len(rest), dtype=torch.bool, device=rest.device)
        taken[:centres].scatter_(1, near, True)
        made_of = torch.where(taken, weight, 0.0)
        made_of[:centres].scatter_(1, centre[:, None], 1.0)
        made_of[centres] = weight.index_fill(0, centre, 0.0)
        if self.normalise:
            made_of /= made_of.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        rows = made_of @ tokens.features[rest].float()
        # one owner each, for those who ask which token has become a part of which
        held = taken[:centres].any(dim=0)
        free = (~held[order[centres:]]).to(torch.uint8).argmax(dim=0, keepdim=True)  # the first that no centre has
        last = order[centres:].gather(0, free)
        best = torch.where(taken[:centres], like, LEAST).argmax(dim=0) if centres else torch.zeros_like(rest)
        owner = torch.where(held, best, centres).index_fill(0, last, centres)
        owner = owner.scatter(0, centre, torch.arange(centres, device=rest.device))
        source = torch.empty(n, dtype=torch.long, device=rest.device)
        source = source.index_copy(0, kept, torch.arange(len(kept), device=rest.device))
        source = source.index_copy(0, rest, owner + len(kept))
        counted = torch.ones(n, device=rest.device).index_copy(0, rest, made_of.gather(0, owner[None])[0])
        anchor = torch.cat([kept, rest[centre], rest[last]])
        return Selection(anchor, source, counted, torch.cat([tokens.features[kept], rows.to(tokens.features)]))

    def _likeness(self, tokens: VisualTokens, rest: Tensor, centre: Tensor, relevance: Tensor | None) -> Tensor:
        """[C, R] in fp32: how near each of the tokens `rest` [R] is to the centres among them, -inf to itself."""
        keys = F.normalize(tokens.signal("joined_keys")[0].detach()[rest].float(), dim=-1)
        like = keys[centre] @ keys.T
        if relevance is not None:
            like = like + self.guidance * relevance[rest]
        return torch.where(like.isnan(), LEAST, like).scatter(1, centre[:, None], -torch.inf)


def _both(attention: Tensor, relevance: Tensor | None, visual: int, recovered: int) -> Tensor:
    """Ascending indices of the visual set and of the text set among the others, of all N tokens."""
    first = top_k(attention, visual)
    if relevance is None or not recovered:
        return first
    others = rest_of(first, len(attention))
    return torch.cat([first, others[top_k(relevance[others], recovered)]]).sort().values


def _by_outliers(attention: Tensor, relevance: Tensor | None) -> tuple[int, int, int]:
    """Sizes of the visual set, of the text set and of what absorbs the rest, as the released code has them."""
    n = len(attention)
    visual, recovered = count_outliers(attention, 20), 0
    if relevance is not None:
        lowest = relevance.index_fill(0, top_k(attention, visual), float(relevance.min()))
        recovered = (n - visual) * count_outliers(lowest, 20) // n
    visual = max(visual, int(not recovered))  # the code may keep nothing
    left = attention[rest_of(_both(attention, relevance, visual, recovered), n)]
    if not len(left):
        return visual, recovered, 0
    centres = (n - len(left)) * count_outliers(left, 10) // len(left)
    return visual, recovered, min(centres, len(left) - 1) + 1
