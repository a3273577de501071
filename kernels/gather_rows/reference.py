"""The same rows of several tensors."""

from collections.abc import Sequence

from torch import Tensor


def gather_rows(index: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """index LongTensor [B, S]; tensors [B or 1, N, ...] -> tensors [B, S, ...]."""
    b, s = index.shape
    taken = []
    for x in tensors:
        rest = x.shape[2:]
        at = index.reshape(b, s, *(1 for _ in rest)).expand(b, s, *rest)
        taken.append(x.expand(b, *x.shape[1:]).gather(1, at))
    return taken
