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
    """

    q: Tensor
    k: Tensor
    share: float = 1.0
    copies: Tensor | None = None

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

    def _weighed(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and the keys under which all copies of a token share what one of them attracts: one more channel
        takes the logarithm of their number off the logits."""
        if self.copies is None:
            return q, self.k
        less = self.copies.log().to(self.k)[:, None, :, None].expand(*self.k.shape[:3], 1)
        one = torch.full_like(q[..., :1], 1 / self.scale)  # `scale` is given, and not that of one channel more
        return torch.cat([q, one], dim=-1), torch.cat([self.k, -less], dim=-1)
