"""Random selection: the baseline every method must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtc.checks import check_number
from vtc.methods.base.method import Method
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """A uniformly random subset, seeded: the honest baseline.

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
        n = tokens.features.shape[0]
        norms = tokens.features.float().norm(dim=-1)  # [N]
        picture = (int(norms.argmax()) * n + int(norms.argmin())) * n + n
        generator = torch.Generator().manual_seed(hash((self.seed, picture)) % 2**63)
        kept = torch.randperm(n, generator=generator)[: self.count(tokens)].sort().values
        return Selection.prune(kept.to(tokens.features.device), n)
