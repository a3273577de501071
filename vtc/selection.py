"""Selection: what every method returns — which visual tokens stand for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops


@dataclass(frozen=True, eq=False)
class Selection:
    """Which of N visual tokens stay, and what each of the M outputs is made of.

    Attributes:
        anchor: LongTensor [M], the input token whose place (and position) each output takes; distinct.
        source: LongTensor [N], the output that absorbs each input token, or -1 if it is dropped.
        weight: FloatTensor [N]. Output m is `sum(weight[i] * x[i] for source[i] == m)`: weights 1/n make a mean,
            and methods whose paper sums instead (VisionZip's contextual tokens) say so here.
        features: [M, D] or None; a trained module's own output, used instead of the sum.
    """

    anchor: Tensor
    source: Tensor
    weight: Tensor
    features: Tensor | None = None

    @classmethod
    def prune(cls, kept: Tensor, total: int) -> Selection:
        """Keep the tokens `kept` [M] of `total`, in that order; every other token is dropped."""
        source = torch.full((total,), -1, dtype=torch.long, device=kept.device)
        source[kept] = torch.arange(kept.numel(), device=kept.device)
        return cls(kept, source, (source >= 0).float())

    @classmethod
    def identity(cls, total: int, device: torch.device | None = None) -> Selection:
        """Keep all of `total` tokens, as they are."""
        return cls.prune(torch.arange(total, device=device), total)

    @classmethod
    def merge(cls, anchor: Tensor, source: Tensor) -> Selection:
        """Average the tokens that share an output: `anchor` [M], `source` [N] with -1 for dropped tokens."""
        used = source >= 0
        size = torch.bincount(source[used], minlength=anchor.numel())  # [M]
        weight = torch.where(used, 1.0 / size[source.clamp(min=0)], 0.0)
        return cls(anchor, source, weight)

    @property
    def tokens_in(self) -> int:
        return self.source.numel()

    @property
    def tokens_out(self) -> int:
        return self.anchor.numel()

    @property
    def merges(self) -> bool:
        """True if some output is more than an untouched copy of its anchor."""
        pure = int((self.source >= 0).sum()) == self.tokens_out and bool((self.weight[self.anchor] == 1).all())
        return self.features is not None or not pure

    @property
    def is_identity(self) -> bool:
        """True if every token stays where it is, as it is."""
        ordered = torch.arange(self.tokens_in, device=self.source.device)
        return self.tokens_out == self.tokens_in and not self.merges and torch.equal(self.source, ordered)

    def check(self, may_be_empty: bool = False) -> Selection:
        """Raise ValueError if the parts do not fit together; returns itself."""
        m, n = self.tokens_out, self.tokens_in
        if m == 0 and may_be_empty:
            return self
        if m == 0:
            raise ValueError("a Selection must keep at least one token of every span; this one keeps none.")
        if self.weight.shape != (n,):
            raise ValueError(f"Selection.weight has shape {tuple(self.weight.shape)}; one weight per input, ({n},).")
        if self.anchor.min() < 0 or self.anchor.max() >= n or self.anchor.unique().numel() != m:
            raise ValueError(f"Selection.anchor must hold distinct token indices in [0, {n}).")
        if self.source.max() >= m or self.source.min() < -1:
            raise ValueError(f"Selection.source must hold output indices in [0, {m}), or -1 for dropped tokens.")
        if not torch.equal(self.source[self.anchor], torch.arange(m, device=self.source.device)):
            raise ValueError("each anchor must be absorbed by its own output: source[anchor[m]] == m.")
        return self

    @staticmethod
    def on_host(selections: Sequence[Selection]) -> list[Selection]:
        """The same selections in main memory, read from their device all at once: it is waited for once, not often.

        What follows — checks, the layout of the shortened batch — is arithmetic on a few hundred numbers.
        """
        if all(s.anchor.device.type == "cpu" for s in selections):
            return list(selections)
        numbers = torch.cat([x for s in selections for x in (s.anchor, s.source)]).cpu()
        weights = torch.cat([s.weight for s in selections]).cpu().split([s.tokens_in for s in selections])
        parts = iter(numbers.split([n for s in selections for n in (s.tokens_out, s.tokens_in)]))
        return [
            Selection(next(parts), next(parts), weight, s.features)
            for s, weight in zip(selections, weights, strict=True)
        ]

    def to(self, device: torch.device) -> Selection:
        """The same selection on `device`; `features` stay where they are."""
        if self.anchor.device == device:
            return self
        return Selection(self.anchor.to(device), self.source.to(device), self.weight.to(device), self.features)

    def sorted(self) -> Selection:
        """The same selection with its outputs in ascending order of their anchors."""
        anchor, order = self.anchor.sort()
        if torch.equal(anchor, self.anchor):
            return self
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel(), device=order.device)
        source = torch.where(self.source >= 0, rank[self.source.clamp(min=0)], -1)
        return Selection(anchor, source, self.weight, None if self.features is None else self.features[order])

    def apply(self, x: Tensor) -> Tensor:
        """Compress rows `x` [N, D] to [M, D]: a gather when nothing merges, else a weighted sum per output."""
        if self.features is not None:
            return self.features.to(x)
        return self.combine(x)

    def combine(self, x: Tensor) -> Tensor:
        """`apply` for rows that travel beside the features (DeepStack's): `features` does not stand in for them."""
        if not self.merges:
            return x[self.anchor.to(x.device)]
        return ops.segment_sum(x, self.source.to(x.device), self.weight.to(x.device), self.tokens_out)

    def then(self, second: Selection) -> Selection:
        """This selection followed by `second`, which chose among this one's outputs."""
        source = torch.where(self.source >= 0, second.source[self.source.clamp(min=0)], -1)
        passed = second.weight[self.source.clamp(min=0)] * self.weight
        weight = torch.where(source >= 0, passed, 0.0)
        features = second.features
        if features is None and self.features is not None:
            features = second.combine(self.features)
        return Selection(self.anchor[second.anchor], source, weight, features)
