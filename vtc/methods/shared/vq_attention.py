"""VQ-Attn: the module that tells each code of a codebook where in the clip it occurs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.signals import VisualTokens

ROLES = ("codes", "hash")


class VQAttention(nn.Module):
    """One layer of attention between a codebook and its token hash: codes [B, M, D] -> [B, M, D].

    Source: VQToken, arXiv 2503.16980, section 3.3. `roles="codes"` is the paper's: queries and keys are the codebook,
    values an MLP of the flattened hash. `roles="hash"` is the released decoder's: queries are a projection of the hash,
    keys and values the codebook. Both give one output per code (the released one gives one per frame).

    Here the hash enters code by code, as that code's occupancy of a fixed grid of cells, so that clips of any size and
    codebooks of any length and order go through the same weights; and the output is a correction of the code, in units
    of the codes' mean length: the language model stays frozen, and reads plain codes as they are. Training starts from
    no correction at all, with queries and keys that make each code attend to itself. In the paper everything trains
    together, so that codes need not resemble tokens.

    Args:
        width: D. cells: (t, h, w) of the occupancy grid. roles: as above.
        random: draw all parameters (Xavier), instead of starting from no correction: the untrained ablation.
    """

    def __init__(self, width: int, cells: tuple[int, int, int], roles: str, random: bool = False) -> None:
        super().__init__()
        self.roles, self.heads = roles, math.gcd(width, 8)
        self.where = nn.Sequential(nn.Linear(math.prod(cells) + 1, width), nn.GELU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        if not random:
            nn.init.zeros_(self.feed[-1].weight)  # type: ignore[arg-type]
            if roles == "codes":
                nn.init.eye_(self.query.weight)
                nn.init.eye_(self.key.weight)

    def forward(self, codes: Tensor, occupancy: Tensor, there: Tensor) -> Tensor:
        """codes [B, M, D], occupancy [B, M, cells] in [0, 1], there BoolTensor [B, M] -> [B, M, D]."""
        share = occupancy.mean(dim=-1, keepdim=True)
        level = occupancy.square().mean(dim=-1, keepdim=True).sqrt()
        seen = torch.cat([occupancy / level.clamp(min=1e-6), share.clamp(min=1e-6).log()], dim=-1)
        what, where = self.norm(codes), self.where(seen)  # [B, M, D] each
        asks, told = (what, where) if self.roles == "codes" else (where, what)
        q, k, v = (self._heads(x) for x in (self.query(asks), self.key(what), told))
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])  # [B, H, M, d]
        fused = asks + self.out(heard.transpose(1, 2).flatten(2))
        length = (codes.norm(dim=-1) * there).sum(dim=-1) / there.sum(dim=-1)  # [B]
        return codes + self.feed(fused) * (length / math.sqrt(codes.shape[-1]))[:, None, None]

    def _heads(self, x: Tensor) -> Tensor:
        """[B, M, D] -> [B, H, M, d]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def flops(codes: int, width: int, cells: tuple[int, int, int]) -> int:
    """FLOPs of `VQAttention` on one span; multiply-adds count twice."""
    linear = width * (math.prod(cells) + 1) + 4 * width * width + 8 * width * width
    return 2 * codes * linear + 4 * codes * codes * width


def occupancy(tokens: VisualTokens, source: Tensor, codes: int, cells: tuple[int, int, int]) -> Tensor:
    """The token hash in a form of fixed size: source [N] -> [codes, cells], the share of each cell that a code fills.

    The hash is sampled at the middles of a grid as fine as the finer of clip and cells, along each axis, which keeps
    every token and leaves no cell empty. Separators have no place in it; tiles that cover part of a picture go where
    they belong.
    """
    device = source.device
    code_of = torch.full((tokens.total,), -1, dtype=torch.long, device=device)
    code_of[tokens.index] = source
    every = math.prod(cells)
    filled = torch.zeros(codes * every, device=device)
    points = torch.zeros(every, device=device)
    for tile in tokens.span.tiles:
        x0, y0, x1, y1 = tile.box or (0.0, 0.0, 1.0, 1.0)
        ranges = ((tile.t, 0.0, 1.0), (tile.h, y0, y1), (tile.w, x0, x1))
        (t, a), (h, b), (w, c) = (_samples(*axis, count) for axis, count in zip(ranges, cells, strict=True))
        code = code_of[tile.indices()[t][:, h][:, :, w].flatten().to(device)]
        cell = ((a[:, None, None] * cells[1] + b[:, None]) * cells[2] + c).flatten().to(device)
        points += torch.bincount(cell, minlength=every)
        known = code >= 0
        filled += torch.bincount(code[known] * every + cell[known], minlength=codes * every)
    return filled.view(codes, every) / points.clamp(min=1.0)


def _samples(size: int, low: float, high: float, cells: int) -> tuple[Tensor, Tensor]:
    """Along one axis: which token of `size`, and which of `cells` over [0, 1], each sample point falls to."""
    count = max(size, cells)
    middle = 2 * torch.arange(count) + 1
    place = (low + (high - low) * middle.double() / (2 * count)) * cells + 1e-9
    return middle * size // (2 * count), place.long().clamp(max=cells - 1)
