"""Greedy diversity for all spans of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtc import ops
from vtc.signals import VisualTokens
from vtc.transfer import upload

LARGEST = 2**26  # similarities held at a time


def diverse(
    many: Sequence[VisualTokens], counts: Sequence[int], mode: str, first: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Per span a LongTensor [count], in order of selection; see `vtc.ops.greedy_diversity`.

    Args:
        first: per span the token to begin with, a LongTensor scalar.
    """
    sizes = [len(tokens.features) for tokens in many]
    step = max(1, LARGEST // max(sizes) ** 2)
    found: list[Tensor] = []
    for start in range(0, len(many), step):
        part = slice(start, start + step)
        features = [tokens.features for tokens in many[part]]
        ragged = len(set(sizes[part])) > 1
        stacked = pad_sequence(features, batch_first=True) if ragged else torch.stack(features)
        lengths = upload(torch.tensor(sizes[part]), stacked.device) if ragged else None
        begin = None if first is None else torch.stack(list(first[part]))
        chosen = ops.greedy_diversity(stacked, max(counts[part]), mode, begin, lengths)
        found += [row[:count] for row, count in zip(chosen, counts[part], strict=True)]
    return found
