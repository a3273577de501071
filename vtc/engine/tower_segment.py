"""Segment: queries and keys of patches that attend within themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops


@dataclass
class Segment:
    """Patches that attend within themselves, as signals of the place `tower` read them.

    Attributes:
        q, k: [B, H, T, d], as the attention uses them; the first is the CLS token, if there is one.
        share: of all patches of the run.
        copies: [B, T], how many copies of each token there are, where the attention has seen one of them only; None
            where it has seen all, or one that attracted as much attention as all.
        first: how many tokens stand before the patches (CLS).
        places: how many of the last channels say where a patch is, and nothing else (`Tower.place_channels`).
    """

    q: Tensor
    k: Tensor
    share: float = 1.0
    copies: Tensor | None = None
    first: int = 0
    places: int = 0

    @property
    def keys(self) -> Tensor:
        """[B, H, T, d], of what is in each patch."""
        return self.k[..., : self.k.shape[-1] - self.places]

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    def rows(self, q: Tensor) -> Tensor:
        """[B, R, T]: attention (mean over heads) of the queries q [B, H, R, d]."""
        return ops.attention_rows(*self._weighed(q), self.scale)

    def joined_row(self, q: Tensor) -> Tensor:
        """[B, T] in fp32: attention of one query q [B, H, d] as if all heads were one, H d wide.

        A product of a matrix and a vector for each picture: no kernel of ours is worth its while.
        """
        products = (q.float()[:, :, None] @ self.k.float().mT)[:, :, 0]  # [B, H, T]
        logits = products.sum(dim=1) * (q.shape[1] * q.shape[2]) ** -0.5
        return (logits if self.copies is None else logits - self.copies.log()).softmax(dim=-1)

    def logits(self, q: Tensor) -> Tensor:
        """[B, R, T] in fp32: scaled products (mean over heads) of the queries q [B, H, R, d] and the keys."""
        heads = q.shape[1]
        joined = (x.transpose(1, 2).flatten(2).float() for x in (q, self.k))  # [B, R, H * d] and [B, T, H * d]
        queries, keys = joined
        return queries @ keys.mT * (self.scale / heads)

    def received(self) -> Tensor:
        """[B, T]: mean attention that each token receives from all of them."""
        return ops.received_attention(*self._weighed(self.q), self.scale)

    def from_global(self, times: float) -> Tensor:
        """[B, T]: mean attention that each token receives from the global ones of its row: the patches that receive
        more than `times` the mean of all patches, or, where none does, the one that receives most.

        What all receive sums to 1, so only N / times patches that receive most can be global: theirs are the only
        rows that are made.
        """
        q, k = self._weighed(self.q)
        received = ops.received_attention(q, k, self.scale)[:, self.first :]  # [B, N]
        n = received.shape[1]
        value, patch = received.topk(min(n, int(n / max(times, 1)) + 1), dim=1)  # [B, R]
        chosen = value > times * received.mean(dim=1, keepdim=True)
        chosen[:, 0] |= ~chosen.any(dim=1)
        weight = chosen / chosen.sum(dim=1, keepdim=True)
        at = (patch + self.first)[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])
        passed = ops.passed_attention(q.gather(2, at), k, self.scale, weight[:, None].expand(-1, q.shape[1], -1))
        return passed.mean(dim=1)

    def _weighed(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and the keys under which all copies of a token share what one of them attracts: one more channel
        takes the logarithm of their number off the logits."""
        if self.copies is None:
            return q, self.k
        less = self.copies.log().to(self.k)[:, None, :, None].expand(*self.k.shape[:3], 1)
        one = torch.full_like(q[..., :1], 1 / self.scale)  # `scale` is given, and not that of one channel more
        return torch.cat([q, one], dim=-1), torch.cat([self.k, -less], dim=-1)
