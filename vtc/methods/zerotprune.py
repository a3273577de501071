"""Zero-TPrune: patches lose their place by a page rank of the attention graph, and by likeness to better ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.budget import scaled
from vtc.checks import check_number, check_row
from vtc.methods.base.encoder import BlockTokens, EncoderMethod, Joined
from vtc.methods.base.method import Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens

#: share of 196 patches that the paper's DeiT-S has left behind each of its pruning layers
_SHAPE = (186 / 196, 159 / 196, 120 / 196, 77 / 196, 67 / 196)


@dataclass(frozen=True, kw_only=True)
class ZeroTPrune(EncoderMethod):
    """Drops patches by a page rank of attention.

    In a few blocks of the vision tower, patches that little attention ends up at leave, and some that resemble a more
    important one.

    Source: arXiv 2305.17328, its algorithm of weighted page rank and the two stages around it. There is no official
    code; the steps are those of three independent accounts of it:

    * Weighted page rank, head by head: s, uniform at first, becomes A^T s, `iterations` times, A being the block's
      softmax attention. Heads are joined by a root mean square, over those whose variance of T s (mean 1) lies within
      `variance`, or all where none does: the paper's interval cannot be meant of s, which sums to 1.
    * Of the less important half of the patches those leave that are most like one of the other half, by the cosine of
      their keys: `similar` of all patches, or fewer where fewer are to go.
    * Page rank again, among what is left, rows summing to 1 anew; the least important leave.

    The paper finds what each block keeps by a search over unlabelled pictures; here they are DeiT-S's, from the paper,
    raised to the power that makes the last one `keep`. What is dropped is dropped before the block's feed-forward part
    and not behind it, which comes to the same and costs less. The tower hands over, in the place of a dropped patch,
    what has become of the one that stayed and was most like it.

    Args:
        stage: "encoder", between the blocks of the vision tower: the one place where it acts, and what None stands for.
        scope: "clip" alone: there each picture's own patches are chosen among.
        blocks: behind whose attention patches go: ints (0-based) or fractions in [0, 1) of the blocks that count; of 12
            blocks 0, 2, 5, 8 and 10, as the paper prunes DeiT-S.
        similar: share of all patches that goes by likeness in each of them; the paper's 10 of 196.
        iterations: of page rank, in the first quarter of the blocks, in the middle, and in the last quarter.
        start: "uniform"; or "cls", which the paper classifies with: the CLS token begins with sqrt(T) times as much.
        variance: within which a head's scores are to vary for it to be heard.
    """

    name = "zerotprune"
    keep: int | float = 0.5
    stage: str | None = "encoder"
    blocks: tuple[int | float, ...] = (0.0, 0.17, 0.42, 0.67, 0.84)
    similar: float = 0.051
    iterations: tuple[int, int, int] = (30, 5, 1)
    start: str = "uniform"
    variance: tuple[float, float] = (0.01, 0.7)
    places = ("encoder",)
    scopes = ("clip",)  # it chooses among each picture's own patches
    paper = Paper("Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph", "2305.17328")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage is None:
            object.__setattr__(self, "stage", "encoder")
        what = "a block's number (an int), or a share of the blocks in [0, 1) (a float)"
        check_row(self.blocks, "blocks", "blocks, such as (0, 2, 5) or (0.0, 0.4)")
        check_row(self.iterations, "iterations", "three numbers, such as (30, 5, 1)")
        check_row(self.variance, "variance", "two numbers, such as (0.01, 0.7)")
        if not self.blocks:
            raise ValueError(f"{self.title} needs at least one block in blocks=.")
        for block in self.blocks:
            whole = isinstance(block, int)
            check_number(block, "blocks", 0, below=None if whole else 1, integer=whole, what=what)
        check_number(self.similar, "similar", 0, 1, what="a share of all patches")
        if len(self.iterations) != 3:
            raise ValueError(f"iterations={self.iterations!r} of {self.title} are not three numbers.")
        for count in self.iterations:
            check_number(count, "iterations", 1, integer=True, what="how often attention is passed on")
        if self.start not in ("uniform", "cls"):
            raise ValueError(f"start={self.start!r} is not one of uniform, cls.")
        for bound in self.variance:
            check_number(bound, "variance", what="a variance")
        if len(self.variance) != 2 or not self.variance[0] <= self.variance[1]:
            raise ValueError(f"variance={self.variance!r} of {self.title} is no interval (low, high).")

    def check_depth(self, depth: int) -> None:
        if self.at(depth)[-1] >= depth:
            raise ValueError(f"blocks={self.blocks} of {self.title}: only blocks 0 to {depth - 1} of this tower count.")

    def at(self, depth: int) -> list[int]:
        """Numbers of the blocks behind whose attention patches go."""
        return sorted({block if isinstance(block, int) else int(block * depth) for block in self.blocks})

    def counts_to(self, last: int, total: int, depth: int) -> tuple[int, ...]:
        at = self.at(depth)
        shape = tuple(0.5 ** ((i + 1) / len(at)) for i in range(len(at)))
        left = scaled(_SHAPE if len(at) == len(_SHAPE) else shape, last, total)
        return tuple(left[sum(block <= i for block in at) - 1] if at[0] <= i else total for i in range(depth))

    def join(self, tokens: BlockTokens) -> Joined:
        q, k, scale = tokens.attention()
        assert isinstance(tokens.gone, int)
        prefix, (b, t) = tokens.prefix, tokens.keys.shape[:2]
        own = torch.arange(t, device=q.device).expand(b, -1)
        place = 4 * tokens.block / tokens.depth  # in quarters
        times = self.iterations[0 if place < 1 else 1 if place < 3 else 2]
        first = tokens.has_cls and self.start == "cls"
        importance = self.rank(q, k, scale, times, first)[:, prefix:]
        likely = min(tokens.gone, round(self.similar * tokens.total), (t - prefix) // 2)
        stays = own[:, prefix:]
        if likely:
            stays = prefix + _unlike(tokens.keys[:, prefix:], importance, likely)
        stays = torch.cat([own[:, :prefix], stays], dim=1)
        if rest := tokens.gone - likely:
            at = stays[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[-1])
            again = self.rank(q.gather(2, at), k.gather(2, at), scale, times, first)[:, prefix:]
            best = again.argsort(dim=1, descending=True, stable=True)[:, : again.shape[1] - rest].sort(dim=1).values
            stays = torch.cat([stays[:, :prefix], stays.gather(1, prefix + best)], dim=1)
        kept = torch.zeros(b, t, dtype=torch.bool, device=q.device).scatter_(1, stays, True)
        return Joined(torch.where(kept, own, -1))

    def select(self, tokens: VisualTokens) -> Selection:
        raise TypeError(
            f"{self.title} reads the attention of the vision tower's blocks and chooses between them: wrap a model, or "
            "a vision tower, with it."
        )

    def rank(self, q: Tensor, k: Tensor, scale: float, times: int, cls_first: bool) -> Tensor:
        """Importance [B, T] of the rows whose queries and keys are q, k [B, H, T, d]."""
        t = q.shape[2]
        s = torch.ones(q.shape[:3], device=q.device)
        if cls_first:
            s[:, :, 0] = t**0.5
        s = s / s.sum(dim=-1, keepdim=True)
        s = ops.passed_attention(q, k, scale, s, times)
        spread = (t * s).var(dim=-1, unbiased=False)
        heard = (spread >= self.variance[0]) & (spread <= self.variance[1])  # [B, H]
        heard = (heard | ~heard.any(dim=1, keepdim=True)).float()[:, :, None]
        return ((heard * s**2).sum(dim=1) / heard.sum(dim=1)).sqrt()


def _unlike(keys: Tensor, importance: Tensor, gone: int) -> Tensor:
    """Ascending [B, N - gone]: patches without those `gone` of the less important half, of [B, N], that are most like
    one of the other half."""
    b, n = importance.shape
    order = importance.argsort(dim=1, stable=True)
    width = keys.shape[-1]
    less, more = order[:, : n // 2], order[:, n // 2 :]
    x, y = (torch.nn.functional.normalize(keys.float().gather(1, at[..., None].expand(-1, -1, width)), dim=-1)
            for at in (less, more))  # fmt: skip
    likeness = (x @ y.mT).amax(dim=-1)
    goes = less.gather(1, likeness.argsort(dim=1, descending=True, stable=True)[:, :gone])
    left = torch.ones(b, n, dtype=torch.uint8, device=keys.device).scatter_(1, goes, 0)
    return left.argsort(dim=1, descending=True, stable=True)[:, : n - gone]
