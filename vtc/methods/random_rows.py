"""Random rows of the KV cache: the baseline of methods that choose among cached tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.cache import CacheMethod
from vtc.signals import VisualTokens
from vtc.transfer import upload


@dataclass(frozen=True, kw_only=True)
class RandomRows(CacheMethod):
    """Random cached tokens, seeded.

    Each layer holds a random part of a picture's tokens after the prefill, which has seen all of them. The draw depends
    on `seed`, the layer and the picture (through which of its keys are longest and shortest), so that a picture gets
    the same one in any batch.

    Args:
        seed: integer; another seed draws other tokens.
        per_head: whether each KV head draws for itself.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "random-rows"
    keep: int | float = 0.5
    seed: int = 0
    per_head: bool = False
    sinks: int = 4
    needs = ("cached_keys",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.seed, "seed", integer=True)

    def score(self, tokens: VisualTokens) -> Tensor:
        norms = tokens.signal("cached_keys").float().norm(dim=-1)  # [G, N]
        n = norms.shape[1]
        if self.count(tokens) == n:
            return norms if self.per_head else norms[0]
        picture = int(norms.sum(dim=0).argmax()) * n + int(norms.sum(dim=0).argmin())
        drawn = hash((self.seed, tokens.layer, picture, n)) % 2**63
        generator = torch.Generator().manual_seed(drawn)
        shape = norms.shape if self.per_head else norms.shape[1:]
        return upload(torch.rand(shape, generator=generator), norms.device)
