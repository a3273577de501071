"""K-norm: keys of a small norm stay in the cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class KNorm(CacheMethod):
    """Keys with a small norm; hears no attention.

    Source: arXiv 2406.11430, section 3: in each head, tokens whose keys have the smallest L2 norm receive most
    attention later, so they stay. The rotation to a position changes no norm. With scope="all" that is the paper's form
    (`sinks=0`), whose experiments leave the first two layers alone (`first=2`).

    Args:
        per_head: whether each KV head chooses for itself; False = the mean norm over heads chooses for all.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "knorm"
    keep: int | float = 0.5
    per_head: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    sinks: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    needs = ("cached_keys",)
    paper = Paper("A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", "2406.11430")

    def score(self, tokens: VisualTokens) -> Tensor:
        score = -tokens.signal("cached_keys").float().norm(dim=-1)
        return score if self.per_head else score.mean(dim=0)
