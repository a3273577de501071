"""VidCom²: more of the frames that are unlike the rest, and in each frame its outliers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.shared.clips import frame_rows, share_out, with_separators
from vtc.selection import Selection
from vtc.signals import VisualTokens

BLOCK = 4096  # tokens compared at a time
WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # variances of the Gaussians that likeness is the sum of


@dataclass(frozen=True, kw_only=True)
class VidCom2(Method):
    """Outliers of each frame, more of odd frames.

    Tokens least like the mean of the clip and of their frame; frames unlike the clip keep more of them.

    Source: arXiv 2505.14454, section 4, with the details of the released code. In the half of the channels that vary
    least over the clip, rows of length 1 are compared with the mean of all and with that of their frame: likeness is
    the sum of Gaussians of variance 1/8, 1/4, 1/2, 1 and 2 of the distance, and of the two likenesses. What is least
    like them stays. A frame's share of the budget is in proportion to 1 + p - the mean of p, where p is a softmax over
    the frames of minus the mean likeness of their tokens to the clip.

    The released code rounds the share of each frame by itself, cuts it to the frame's size and so keeps about `keep`;
    here the count is exact, by largest remainders, and what a frame cannot take others do, as a server has to know the
    count before the tower runs. Its ports keep the original positions. It does nothing to batches; here rows choose for
    themselves. Newline embeddings, which it keeps in LLaVA-Video, stay only where the budget is not used up.

    Args:
        channels: share of the channels that are compared, those of least variance.
        temperature: of the softmax over frames; the smaller, the more goes to the oddest frame (at most twice its even
            share).
        exact_count: False rounds frame by frame, as released.
    """

    name = "vidcom2"
    keep: int | float = 0.25
    channels: float = 0.5
    temperature: float = 0.01
    exact_count: bool = True
    needs = ("grid",)
    modality = ("video",)
    scopes = ("clip",)
    paper = Paper(
        "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
        "2505.14454",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.channels, "channels", above=0, high=1, what="a share of the channels")
        check_number(self.temperature, "temperature", above=0, what="a temperature")

    def select(self, tokens: VisualTokens) -> Selection:
        rows, n = frame_rows(tokens), len(tokens.features)
        there, budget = rows >= 0, self.count(tokens)
        sizes = there.sum(dim=1)  # [T]
        patches = rows[there]  # frame by frame
        frame = torch.arange(len(rows), device=rows.device).repeat_interleave(sizes)
        to_clip, to_frame = self._likeness(tokens.features.detach()[patches], frame, len(rows))
        odd = ops.segment_mean(-to_clip[:, None], frame, len(rows))[:, 0]
        p = (odd / self.temperature).masked_fill(sizes == 0, -torch.inf).softmax(dim=0)
        more = 1 + p - 1 / int((sizes > 0).sum())  # of an even share
        counts = self._counts(budget, more.tolist(), sizes.tolist())
        likeness = (to_clip + to_frame).split(sizes.tolist())
        members = patches.split(sizes.tolist())
        kept = [own[top_k(-alike, count)] for own, alike, count in zip(members, likeness, counts, strict=True)]
        return Selection.prune(with_separators(tokens, torch.cat(kept).sort().values, budget), n, ascending=True)

    def _likeness(self, x: Tensor, frame: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Of patches x [M, D] to the mean of all, and to that of their `frame` [M]: two tensors [M]."""
        unit = self._quiet(x)
        whole, own = unit.mean(dim=0), ops.segment_mean(unit, frame, frames)
        blocks = list(zip(unit.split(BLOCK), frame.split(BLOCK), strict=True))
        to_clip = torch.cat([_gaussians(part - whole) for part, _ in blocks])
        return to_clip, torch.cat([_gaussians(part - own[mine]) for part, mine in blocks])

    def _quiet(self, x: Tensor) -> Tensor:
        """Rows of length 1 in the channels of x [M, D] that vary least."""
        x = x.float().nan_to_num_(0.0, 0.0, 0.0)
        few = max(1, int(self.channels * x.shape[1]))
        least = x.var(dim=0, correction=0).argsort(stable=True)[:few]
        return F.normalize(x[:, least.sort().values], dim=-1)

    def _counts(self, budget: int, more: list[float], sizes: list[int]) -> list[int]:
        """How many tokens each frame keeps."""
        if self.exact_count:
            return share_out(budget, [a * size for a, size in zip(more, sizes, strict=True)], sizes, least=1)
        share = budget / sum(sizes)
        return [min(size, max(1, round(min(1.0, share * a) * size))) for a, size in zip(more, sizes, strict=True)]


def _gaussians(apart: Tensor) -> Tensor:
    """Sum over WIDTHS of exp(-|d|² / 2 a), of differences d [M, D]: [M]."""
    squares = apart.square().sum(dim=-1)
    return sum((torch.exp(squares / (-2 * a)) for a in WIDTHS), torch.zeros_like(squares))
