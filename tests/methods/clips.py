"""Clips to test temporal methods on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.layout import Tile, VisualSpan
from vtc.signals import VisualTokens


def still_clip(t: int = 8, h: int = 3, w: int = 4, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Tokens of a scene in which nothing moves, [t * h * w, 8]: every frame the same but for a little noise."""
    g = torch.Generator().manual_seed(seed)
    still = torch.randn(1, h * w, 8, generator=g).expand(t, -1, -1)
    return (still + noise * torch.randn(t, h * w, 8, generator=g)).flatten(0, 1)


def random_clip(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def clip_tokens(
    x: Tensor,
    grid: tuple[int, int, int],
    index: Sequence[int] | None = None,
    separators: int = 0,
    signals: dict[str, Any] | None = None,
    **options: Any,
) -> VisualTokens:
    """Features x [N, D] of a video of `grid`, and so many separators behind it, of which `index` are left."""
    t, h, w = grid
    total = t * h * w + separators
    span = VisualSpan(0, torch.arange(total), grid, (Tile(0, t, h, w, role="frames"),), modality="video")
    left = torch.arange(total) if index is None else torch.as_tensor(index)
    return VisualTokens(x[left], span, left, lambda name: (signals or {})[name], **options)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))
