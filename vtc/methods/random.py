"""Random selection: the baseline every method must beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.encoder import DroppingMethod
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import download_all, upload


@dataclass(frozen=True, kw_only=True)
class Random(DroppingMethod):
    """A random subset, seeded: the honest baseline.

    A uniformly random subset, seeded: the honest baseline.

    The draw depends on `seed` and on the picture itself (through which of its tokens are longest and shortest), so
    that different pictures get different subsets while one picture gets the same subset in any batch or beam.

    Args:
        seed: integer; another seed draws other subsets.
    """

    name = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.seed, "seed", integer=True)

    def select(self, tokens: VisualTokens) -> Selection:
        return self.select_many([tokens])[0]

    def select_many(self, many: Sequence[VisualTokens]) -> list[Selection]:
        norms = [tokens.features.float().norm(dim=-1) for tokens in many if self.count(tokens) < len(tokens.features)]
        pictures = iter(download_all([x for own in norms for x in (own.argmax(), own.argmin())]))
        return [self._kept(tokens, pictures) for tokens in many]

    def _kept(self, tokens: VisualTokens, pictures: Iterator[Tensor]) -> Selection:
        """A subset that the next two of `pictures`, its features of largest and smallest norm, draw."""
        n, k, device = len(tokens.features), self.count(tokens), tokens.features.device
        if k == n:
            return Selection.identity(n, device)
        picture = (int(next(pictures)) * n + int(next(pictures))) * n + n
        generator = torch.Generator().manual_seed(hash((self.seed, picture)) % 2**63)
        return Selection.prune(
            upload(torch.randperm(n, generator=generator)[:k].sort().values, device), n, ascending=True
        )
