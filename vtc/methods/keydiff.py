"""KeyDiff: keys unlike the mean key stay in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class KeyDiff(CacheMethod):
    """Keys unlike the mean key; hears no attention.

    Source: arXiv 2504.15364, section 3 (algorithm 1): in each head, the anchor is the mean of the keys' directions, and
    tokens whose keys have the smallest cosine with it stay. The paper goes through the prompt in blocks; here it is
    chosen once, after the prefill, which is the same for one block. With scope="all" and `sinks=0` that is its form.

    Args:
        rotated: keys as they are cached, as in the paper; False = before the rotation to their positions.
        per_head: whether each KV head chooses for itself; False = the mean cosine over heads chooses for all.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "keydiff"
    keep: int | float = 0.5
    rotated: bool = True
    per_head: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    sinks: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    needs = ("cached_keys", "plain_keys")
    paper = Paper("KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference", "2504.15364")

    def requires(self) -> tuple[str, ...]:
        return ("cached_keys",) if self.rotated else ("plain_keys",)

    def score(self, tokens: VisualTokens) -> Tensor:
        keys = F.normalize(tokens.signal("cached_keys" if self.rotated else "plain_keys").float(), dim=-1)
        score = -F.cosine_similarity(keys, keys.mean(dim=1, keepdim=True), dim=-1)
        return score if self.per_head else score.mean(dim=0)
