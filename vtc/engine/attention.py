"""Inside a decoder layer: attention of chosen tokens, read from its weights without running it.

Queries are projected for the chosen tokens only; keys come from the KV cache where the layer has just filled it, and
are projected otherwise. The model's own attention implementation is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vtc import ops


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, H, T, d] by cos, sin [B, T, r], r <= d."""
    cos, sin = cos.unsqueeze(1).to(x.device), sin.unsqueeze(1).to(x.device)
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _tables(attention: Any, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(cos, sin) as [B, T, d]: transformers before 5.18 hands Qwen2-VL one table per axis, [3, B, T, d]."""
    if rotary[0].dim() == 3:
        return rotary
    sections = list(attention.config.rope_parameters["mrope_section"]) * 2
    cos, sin = (
        torch.cat([part[i % 3] for i, part in enumerate(table.split(sections, dim=-1))], dim=-1) for table in rotary
    )
    return cos, sin


def _project(attention: Any, kind: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries ("q") or keys ("k") [B, heads, T, d] of normed hidden states x [B, T, D]."""
    projected = getattr(attention, f"{kind}_proj")(x).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{kind}_norm", None)  # Qwen3
    projected = projected if norm is None else norm(projected)
    return _rotate(projected.transpose(1, 2), cos, sin)


@dataclass
class LayerView:
    """The attention of one decoder layer over a batch, as far as somebody asks.

    Attributes:
        attention: the layer's attention module.
        x: [B, S, D], what goes into it (normed hidden states).
        rotary: (cos, sin), each [B, S, d].
        held: [B, G, P or P + S, d], keys in the cache (already rotated); None without a cache.
        filled: whether `held` includes the S tokens of this forward.
        seen: BoolTensor [B, P + S], False for padding; None = all are real.
    """

    attention: nn.Module
    x: Tensor
    rotary: tuple[Tensor, Tensor]
    held: Tensor | None
    filled: bool
    seen: Tensor | None

    def __post_init__(self) -> None:
        self.rotary = _tables(self.attention, self.rotary)

    @cached_property
    def keys(self) -> Tensor:
        """[B, G, P + S, d]"""
        if self.filled and self.held is not None:
            return self.held
        own = _project(self.attention, "k", self.x, *self.rotary)
        return own if self.held is None else torch.cat([self.held.to(own.device), own], dim=2)

    @property
    def past(self) -> int:
        """P, keys of earlier forwards."""
        if self.held is None:
            return 0
        return self.held.shape[2] - (self.x.shape[1] if self.filled else 0)

    def _queries(self, at: Tensor) -> Tensor:
        rows = at.clamp(min=0).unsqueeze(-1)
        cos, sin = (table.expand(len(at), -1, -1) for table in self.rotary)
        taken = [t.gather(1, rows.to(t.device).expand(-1, -1, t.shape[-1])) for t in (self.x, cos, sin)]
        return _project(self.attention, "q", *taken)

    def rows(self, at: Tensor) -> Tensor:
        """Attention rows of the queries in slots `at` [B, R] (-1 = none) onto all keys, [B, R, P + S]."""
        limit = torch.where(at >= 0, at + self.past, -1)
        scale: Any = self.attention.scaling
        return ops.attention_rows(self._queries(at), self.keys, scale, limit, self.seen)

    def peak(self, at: Tensor) -> Tensor:
        """Largest attention that any head of any query in slots `at` [B, R] (-1 = none) gives each key, [B, P + S]."""
        limit = torch.where(at >= 0, at + self.past, -1)
        queries, keys, scale = self._queries(at), self.keys, self.attention.scaling
        shared = queries.shape[1] // keys.shape[1]
        most = torch.zeros(len(at), keys.shape[2], device=queries.device)
        for head in range(queries.shape[1]):  # one at a time: [B, R, P + S] is the largest tensor made
            own = keys[:, head // shared, None]
            rows = ops.attention_rows(queries[:, head, None], own, scale, limit, self.seen)  # type: ignore[arg-type]
            most = torch.maximum(most, rows.amax(dim=1))
        return most

    def received(self, at: Tensor) -> Tensor:
        """Mean attention that the queries in slots `at` [B, R] (-1 = none) give each key, [B, P + S]."""
        limit = torch.where(at >= 0, at + self.past, -1)
        scale: Any = self.attention.scaling
        return ops.received_attention(self._queries(at), self.keys, scale, limit, self.seen)

    def of_row(self, row: int) -> LayerView:
        """The same view of one batch row."""
        cos, sin = self.rotary
        one = slice(row, row + 1)
        return LayerView(
            self.attention,
            self.x[one],
            (cos[one] if len(cos) > 1 else cos, sin[one] if len(sin) > 1 else sin),
            self.keys[one],
            True,
            None if self.seen is None else self.seen[one],
        )
