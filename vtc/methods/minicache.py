"""MiniCache: neighbouring layers of the cache share the directions of their rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.cache import PairedMethod
from vtc.methods.base.method import Paper

PARALLEL = 1e-4  # sine of an angle below which two directions are averaged


@dataclass(frozen=True, kw_only=True)
class MiniCache(PairedMethod):
    """Two layers, one direction per token.

    Keys and values of neighbouring layers in the deeper half point much the same way: a pair keeps one direction per
    token and head, and each layer its own length. Tokens on which the two differ most are kept by both.

    Source: arXiv 2405.14366, sections 3 and 4: spherical interpolation, weight `t` of the deeper layer; pairs from the
    middle layer on; a share `retention` of tokens with the largest angle is retained. Of a pair's rows at least half is
    saved but for lengths and what is retained: a quarter of the whole cache at best, where the paper's 41 % come with
    4-bit numbers. Steps multiply directions by lengths, which costs time.

    Deviations: what is retained is the `retention` largest angles of each head, keys and values apart (rounded up), as
    in a public re-implementation; the paper takes those beyond a threshold between the least and the largest angle.
    Tokens that are generated later are not shared. By default visual tokens only; `scope="all"` is the paper's.

    Args:
        t: place between the two directions, 0 = the shallower layer's, 1 = the deeper one's.
        retention: share of tokens, of each head, that both layers keep as they are.
    """

    name = "minicache"
    t: float = 0.6
    retention: float = 0.05
    scopes = ("visual", "all")
    paper = Paper("MiniCache: KV Cache Compression in Depth Dimension for Large Language Models", "2405.14366")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.t, "t", 0, 1, what="a place between two directions")
        check_number(self.retention, "retention", 0, 1, what="a share of the tokens")

    def shared(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (F.normalize(x.float(), dim=-1) for x in (one, other))
        angle = torch.arccos((first * second).sum(dim=-1).clamp(-1, 1))  # [G, N]
        sine = angle.sin()
        straight = sine < PARALLEL  # also where they are opposite: no arc leads from one to the other
        parts = [torch.where(straight, share, (share * angle).sin() / sine) for share in (1 - self.t, self.t)]
        made = F.normalize(parts[0][..., None] * first + parts[1][..., None] * second, dim=-1)
        count = math.ceil(self.retention * angle.shape[1])
        kept = torch.zeros_like(angle, dtype=torch.bool)
        order = angle.neg().argsort(dim=1, stable=True)[:, :count]
        return made, kept.scatter_(1, order, True)
