"""GreedyMethod: importance times diversity, chosen token by token, before the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtc import ops
from vtc.budget import split_budget
from vtc.checks import check_number
from vtc.methods.base.method import Method
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import upload

OBJECTIVES = ("maxmin", "maxsum", "coverage", "determinantal", "suppression")
LARGEST = 2**26  # similarities held at a time


@dataclass(frozen=True, kw_only=True)
class GreedyMethod(Method):
    """Base of methods that choose one token after another, by an objective, a similarity and a weight.

    A subclass says its `objective`, and overrides what is not the default of `similarity`, `weight`, `cover` and
    `threshold`. By objective, next is

        maxmin         the token least like the chosen one that is most like it (`ops.greedy_diversity`)
        maxsum         the one least like all chosen ones together
        coverage       the one that adds most to how well each token is stood for (`ops.greedy_coverage`)
        determinantal  the one of which most is left beside what the chosen ones span (`ops.greedy_determinantal`)
        suppression    the heaviest that is not like a chosen one (`ops.greedy_suppression`)

    Chosen tokens stand in their original order.

    Args:
        blocks: choose in so many parts, stretches of the tokens in order, each with its share of the budget, and each
            for itself: with b of them a b-th of the products, or less. Not the set that is chosen at once.
    """

    blocks: int = 1

    #: one of OBJECTIVES; a property where options decide
    objective: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.blocks, "blocks", 1, integer=True, what="a number of parts that are chosen in one by one")

    def similarity(self, tokens: VisualTokens) -> Tensor:
        """[N, D]: vectors whose cosines say how alike tokens are."""
        return tokens.features

    def weight(self, tokens: VisualTokens) -> Tensor | None:
        """[N]: how important tokens are, at least 0; None = all alike. Where diversity alone decides (maxmin, maxsum),
        the one of largest weight is the first, and without weights the one that is least like its nearest other."""
        return None

    def cover(self, tokens: VisualTokens) -> Tensor:
        """[N, M]: how well each token stands for each of M things (coverage): the cosines of all with all."""
        unit = F.normalize(self.similarity(tokens).detach().float(), dim=-1)
        return unit @ unit.T

    def threshold(self, tokens: VisualTokens) -> float:
        """Cosine above which tokens are alike (suppression)."""
        raise TypeError(f"{type(self).__name__} suppresses what is alike: define threshold(tokens).")

    def select(self, tokens: VisualTokens) -> Selection:
        return self.select_many([tokens])[0]

    def select_many(self, many: Sequence[VisualTokens]) -> list[Selection]:
        some = [tokens for tokens in many if self.count(tokens) < len(tokens.features)]
        found = iter(self.choose(some))
        chosen = [
            Selection.prune(next(found), len(tokens.features))
            if self.count(tokens) < len(tokens.features)
            else Selection.identity(len(tokens.features), tokens.features.device)
            for tokens in many
        ]
        return Selection.sort_all(chosen)

    def choose(self, many: Sequence[VisualTokens]) -> list[Tensor]:
        """Per span a LongTensor [count], in order of selection, part after part; pictures of a batch at once."""
        parts = [self._parts(tokens) for tokens in many]
        found = iter(self._choose_all([view for own in parts for _, view in own]))
        chosen = [[next(found) for _ in own] for own in parts]
        return [
            one[0] if len(own) == 1 else torch.cat([start + kept for (start, _), kept in zip(own, one, strict=True)])
            for own, one in zip(parts, chosen, strict=True)
        ]

    def _parts(self, tokens: VisualTokens) -> list[tuple[int, VisualTokens]]:
        """What is chosen in at once: where it begins, and its tokens."""
        n, k = len(tokens.features), self.count(tokens)
        if self.blocks == 1:
            return [(0, tokens)]
        count = min(self.blocks, k)
        ends = [n * (i + 1) // count for i in range(count)]
        starts = [0, *ends[:-1]]
        shares = split_budget(k, [end - start for start, end in zip(starts, ends, strict=True)])
        found = []
        for start, end, share in zip(starts, ends, shares, strict=True):
            here = torch.arange(start, end, device=tokens.features.device)
            found.append((start, replace(tokens.after(here, tokens.features[start:end]), budget=share)))
        return found

    def _choose_all(self, many: Sequence[VisualTokens]) -> list[Tensor]:
        coverage, found = self.objective == "coverage", list[Tensor]()
        for part in _batches(many):
            given = [self.cover(tokens) if coverage else self.similarity(tokens).detach() for tokens in part]
            weights = [self.weight(tokens) for tokens in part]
            counts = [self.count(tokens) for tokens in part]
            own = [weight for weight in weights if weight is not None]
            weight, lengths = None, None
            if own and self.objective not in ("maxmin", "maxsum"):
                weight = _stacked([one.detach() for one in own])
            if len({len(rows) for rows in given}) > 1:
                lengths = upload(torch.tensor([len(rows) for rows in given]), given[0].device)
            if coverage:
                given = _as_wide(given)
            stacked = _stacked(given)
            chosen = self._run(stacked, max(counts), weight, lengths, own, part)
            found += [row[:count] for row, count in zip(chosen, counts, strict=True)]
        return found

    def _run(
        self,
        given: Tensor,
        k: int,
        weight: Tensor | None,
        lengths: Tensor | None,
        own: Sequence[Tensor],
        part: Sequence[VisualTokens],
    ) -> Tensor:
        if self.objective in ("maxmin", "maxsum"):
            first = torch.stack([one.argmax() for one in own]) if own else None
            return ops.greedy_diversity(given, k, self.objective, first, lengths)
        if self.objective == "suppression":
            above = torch.tensor([self.threshold(tokens) for tokens in part])
            weight = torch.ones(given.shape[:2], device=given.device) if weight is None else weight
            return ops.greedy_suppression(given, k, weight, upload(above, given.device), None, lengths)[0]
        if self.objective == "coverage":
            return ops.greedy_coverage(given, k, weight, lengths)
        if self.objective == "determinantal":
            return ops.greedy_determinantal(given, k, weight, lengths)
        name, known = type(self).__name__, ", ".join(OBJECTIVES)
        raise TypeError(f"{name}.objective is {self.objective!r}, which is not one of {known}.")


def _batches(many: Sequence[VisualTokens]) -> list[Sequence[VisualTokens]]:
    """As many at a time as have LARGEST similarities together, but one at least."""
    step = max(1, LARGEST // max((len(tokens.features) for tokens in many), default=1) ** 2)
    return [many[start : start + step] for start in range(0, len(many), step)]


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """[B, N, ...] of rows [n, ...] each, filled up with zeros."""
    if len(rows) == 1:
        return rows[0][None]  # without a copy
    same = len({len(own) for own in rows}) == 1
    return torch.stack(list(rows)) if same else pad_sequence(list(rows), batch_first=True)


def _as_wide(covers: Sequence[Tensor]) -> list[Tensor]:
    """Covers [N, M] with as many targets each; nothing covers those that are added."""
    wide = max(cover.shape[1] for cover in covers)
    if all(cover.shape[1] == wide for cover in covers):
        return list(covers)
    return [F.pad(cover, (0, wide - cover.shape[1])) for cover in covers]
