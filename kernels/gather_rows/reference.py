"""The same rows of several tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gather_rows(index: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """index LongTensor [B, S]; tensors [B or 1, N, ...] -> tensors [B, S, ...]."""
    b = index.shape[0]
    if b == 1:
        return [x.index_select(1, index[0]) for x in tensors]
    rows = torch.arange(b, device=index.device)[:, None]
    return [x.expand(b, *x.shape[1:])[rows, index] for x in tensors]
