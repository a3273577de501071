"""StreamingLLM: the first tokens and the latest ones stay in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Streaming(CacheMethod):
    """The first and the most recent tokens.

    Attention sinks and a window of recent tokens; looks at nothing.

    Source: arXiv 2309.17453, section 3.2: the first `sinks` tokens and as many of the latest as the budget has left;
    as the paper has it with `scope="all", every=1` and an int for `keep`. By default tokens go once, after the prefill,
    and among each picture's own. The paper renumbers positions within the cache; here keys are cached rotated and keep
    theirs, which is the same as long as the conversation stays within the model's context length.

    Args:
        sinks: how many of the first tokens stay.
    """

    name = "streaming"
    keep: int | float = 0.5
    sinks: int = 4
    stacks = True
    paper = Paper("Efficient Streaming Language Models with Attention Sinks", "2309.17453")

    def score(self, tokens: VisualTokens) -> Tensor:
        n = tokens.features.shape[0]
        age = torch.arange(n, dtype=torch.float, device=tokens.features.device)  # later = higher
        age[: min(self.sinks, self.count(tokens))] = torch.inf
        return age
