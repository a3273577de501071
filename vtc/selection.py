"""Selection: what every method returns — which visual tokens stand for which."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from vtc import ops
from vtc.transfer import upload


class Selection:
    """Which of N visual tokens stay, and what each of the M outputs is made of; it does not change once it is made.

    Attributes:
        anchor: LongTensor [M], the input token whose place (and position) each output takes; distinct.
        source: LongTensor [N], the output that absorbs each input token, or -1 if it is dropped.
        weight: FloatTensor [N]. Output m is `sum(weight[i] * x[i] for source[i] == m)`: weights 1/n make a mean,
            and methods whose paper sums instead (VisionZip's contextual tokens) say so here.
        features: [M, D] or None; a trained module's own output, used instead of the sum.
        pruned: whether it was made by `prune`: then the anchors say everything, and nothing has to be read from a
            device to know it.
        ascending: whether the anchors are known to be in ascending order.
    """

    def __init__(self, anchor: Tensor, source: Tensor, weight: Tensor, features: Tensor | None = None) -> None:
        self.anchor, self.features = anchor, features
        self.source, self.weight = source, weight
        self._total, self.pruned, self.ascending = source.numel(), False, False

    def __repr__(self) -> str:
        made = "merged from" if self.merges else "of"
        return f"Selection({self.tokens_out} tokens {made} {self.tokens_in})"

    @classmethod
    def prune(cls, kept: Tensor, total: int, ascending: bool = False) -> Selection:
        """Keep the tokens `kept` [M] of `total`, in that order; every other token is dropped.

        Args:
            ascending: promise that `kept` is in ascending order, which saves putting it so.
        """
        new = cls.__new__(cls)
        new.anchor, new.features = kept, None
        new._total, new.pruned, new.ascending = total, True, ascending
        return new

    @classmethod
    def identity(cls, total: int, device: torch.device | None = None) -> Selection:
        """Keep all of `total` tokens, as they are."""
        return cls.prune(torch.arange(total, device=device), total, ascending=True)

    @classmethod
    def merge(cls, anchor: Tensor, source: Tensor) -> Selection:
        """Average the tokens that share an output: `anchor` [M], `source` [N] with -1 for dropped tokens."""
        size = torch.zeros(anchor.numel() + 1, device=source.device)  # the last counts what is dropped
        size.scatter_add_(0, torch.where(source >= 0, source, anchor.numel()), size.new_ones(len(source)))
        weight = torch.where(source >= 0, 1.0 / size[source.clamp(min=0)], 0.0)
        return cls(anchor, source, weight)

    @cached_property
    def source(self) -> Tensor:
        """LongTensor [N], the output that absorbs each input token, or -1 if it is dropped."""
        source = torch.full((self._total,), -1, dtype=torch.long, device=self.anchor.device)
        return source.scatter_(0, self.anchor, torch.arange(self.tokens_out, device=self.anchor.device))

    @cached_property
    def weight(self) -> Tensor:
        """FloatTensor [N], what each input token counts for in its output; 0 where it is dropped."""
        return torch.zeros(self._total, device=self.anchor.device).index_fill_(0, self.anchor, 1.0)

    @property
    def tokens_in(self) -> int:
        """N, the tokens that it chooses among."""
        return self._total

    @property
    def tokens_out(self) -> int:
        """M, the tokens that come out."""
        return self.anchor.numel()

    @cached_property
    def merges(self) -> bool:
        """True if some output is more than an untouched copy of its anchor."""
        if self.pruned:
            return False
        pure = ((self.source >= 0).sum() == self.tokens_out) & (self.weight[self.anchor] == 1).all()
        return self.features is not None or not bool(pure)

    @property
    def is_identity(self) -> bool:
        """True if every token stays where it is, as it is."""
        if self.tokens_out != self.tokens_in or self.merges:
            return False
        return (self.pruned and self.ascending) or bool(self.anchor.diff().gt(0).all())

    def check(self, may_be_empty: bool = False) -> Selection:
        """Raise ValueError if the parts do not fit together; returns itself."""
        m, n = self.tokens_out, self.tokens_in
        if m == 0 and may_be_empty:
            return self
        if m == 0:
            raise ValueError("a Selection must keep at least one token of every span; this one keeps none.")
        if self.anchor.min() < 0 or self.anchor.max() >= n or self.anchor.unique().numel() != m:
            raise ValueError(f"Selection.anchor must hold distinct token indices in [0, {n}).")
        if self.pruned:
            return self
        if self.weight.shape != (n,):
            raise ValueError(f"Selection.weight has shape {tuple(self.weight.shape)}; one weight per input, ({n},).")
        if self.source.max() >= m or self.source.min() < -1:
            raise ValueError(f"Selection.source must hold output indices in [0, {m}), or -1 for dropped tokens.")
        if not torch.equal(self.source[self.anchor], torch.arange(m, device=self.source.device)):
            raise ValueError("each anchor must be absorbed by its own output: source[anchor[m]] == m.")
        return self

    def detached(self) -> Selection:
        """The same selection without the graph of a trained module's own output, for those who only look at it."""
        if self.features is None:
            return self
        return Selection(self.anchor, self.source, self.weight, self.features.detach())

    def to(self, device: torch.device) -> Selection:
        """The same selection on `device`; `features` stay where they are."""
        if self.anchor.device == device:
            return self
        if self.pruned:
            return Selection.prune(self.anchor.to(device), self.tokens_in, self.ascending)
        return Selection(self.anchor.to(device), self.source.to(device), self.weight.to(device), self.features)

    def sorted(self) -> Selection:
        """The same selection with its outputs in ascending order of their anchors."""
        if self.ascending:
            return self
        anchor, order = self.anchor.sort()
        if self.pruned:
            return Selection.prune(anchor, self.tokens_in, ascending=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        source = torch.where(self.source >= 0, rank[self.source.clamp(min=0)], -1)
        new = Selection(anchor, source, self.weight, None if self.features is None else self.features[order])
        new.ascending = True
        return new

    @staticmethod
    def sort_all(selections: Sequence[Selection]) -> list[Selection]:
        """`sorted` of each; those that only prune are sorted together.

        Example: anchors [4, 1] of five tokens and [2, 0] of three are sorted as [4, 1, 7, 5], the second's beginning
        behind the first's five, to [1, 4, 5, 7].
        """
        mixed = [s for s in selections if s.pruned and not s.ascending]
        if len(mixed) < 2 or len({s.anchor.device for s in mixed}) > 1:
            return [s.sorted() for s in selections]
        device = mixed[0].anchor.device
        starts, counts = [0], [s.tokens_out for s in mixed]
        for s in mixed[:-1]:
            starts.append(starts[-1] + s.tokens_in)
        start = upload(torch.tensor(starts).repeat_interleave(torch.tensor(counts)), device)
        parts = iter((torch.cat([s.anchor for s in mixed]).add_(start).sort().values - start).split(counts))
        return [
            Selection.prune(next(parts), s.tokens_in, ascending=True) if s.pruned and not s.ascending else s.sorted()
            for s in selections
        ]

    def apply(self, x: Tensor) -> Tensor:
        """Compress rows `x` [N, D] to [M, D]: a gather when nothing merges, else a weighted sum per output."""
        if self.features is not None:
            return self.features.to(x)
        return self.combine(x)

    def combine(self, x: Tensor) -> Tensor:
        """`apply` for rows that travel beside the features (DeepStack's): `features` does not stand in for them."""
        if self.pruned:
            return x[self.anchor.to(x.device)]
        return ops.segment_sum(x, self.source.to(x.device), self.weight.to(x.device), self.tokens_out)

    def then(self, second: Selection) -> Selection:
        """This selection followed by `second`, which chose among this one's outputs."""
        anchor = self.anchor[second.anchor]
        if self.pruned and second.pruned:
            return Selection.prune(anchor, self.tokens_in, self.ascending and second.ascending)
        source = torch.where(self.source >= 0, second.source[self.source.clamp(min=0)], -1)
        passed = second.weight[self.source.clamp(min=0)] * self.weight
        weight = torch.where(source >= 0, passed, 0.0)
        features = second.features
        if features is None and self.features is not None:
            features = second.combine(self.features)
        return Selection(anchor, source, weight, features)
