"""QuoTA: frames that the question is about get more tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper
from vtc.methods.pool import cell_map
from vtc.methods.shared.clips import absorbed, frame_rows, share_out
from vtc.selection import Selection
from vtc.signals import VisualTokens

WITHIN = ("pool", "divprune", "uniform")
Scorer = Callable[[VisualTokens], Tensor]


@dataclass(frozen=True, kw_only=True)
class QuoTA(Method):
    """More of the frames that fit the question.

    Shares the budget over the frames by their relevance to the question, then compresses each frame to its share.

    Source: arXiv 2503.08689, section 3. A frame's weight is its relevance to the power of two, as a share of the sum.
    The paper asks a second VLM about each frame (the probability that it holds the question's objects); here the model
    itself scores, from its input embeddings: for each token of the text the most similar token of the frame (cosine),
    averaged over the text, then compared between frames (`relative`). `scorer` brings better judges, such as
    `vtc.OpenClipScorer`. Shares are counts by largest remainder, at least `least` each, where the paper rounds down and
    drops frames that get nothing. Within a frame the paper resizes the grid bilinearly to about a square; "pool"
    averages the near-square cells of `pool`, so that counts are exact.

    Args:
        scorer: tokens -> relevance of each frame, not negative, a tensor of any length (resampled to the grid's
            frames); `tokens.span` says which video it is (`picture`: its number in reading order) and whose (`row`).
        within: "pool", "divprune" (the frame's most different tokens) or "uniform" (evenly spaced ones).
        least: tokens that each frame gets, if the budget allows it for all.
        power: larger powers favour the best frames more; 0 = all alike.
    """

    name = "quota"
    keep: int | float = 0.25
    scorer: Scorer | None = None
    within: str = "pool"
    least: int = 1
    power: float = 2.0
    needs = ("grid", "text")
    query_aware = True
    merges = True
    modality = ("video",)
    scopes = ("clip",)
    positions_default = "compact"
    paper = Paper(
        "QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video Comprehension", "2503.08689"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.within not in WITHIN:
            raise ValueError(f"within={self.within!r} is not one of {', '.join(WITHIN)}.")
        if self.scorer is not None and not callable(self.scorer):
            raise TypeError(f"scorer={self.scorer!r} is not a function from VisualTokens to a score per frame.")
        check_number(self.least, "least", 0, integer=True, what="a number of tokens")
        check_number(self.power, "power", 0, 100, what="an exponent")

    def requires(self) -> tuple[str, ...]:
        return self.needs if self.scorer is None else ("grid",)

    def select(self, tokens: VisualTokens) -> Selection:
        rows, budget = frame_rows(tokens), self.count(tokens)
        frames = [row[row >= 0] for row in rows]
        sizes = [len(frame) for frame in frames]
        shares = share_out(budget, (self._relevance(tokens, frames) ** self.power).tolist(), sizes, self.least)
        target = torch.full((len(tokens.features),), -1, dtype=torch.long, device=rows.device)
        for row, frame, share in zip(rows, frames, shares, strict=True):
            if share == len(frame):
                target[frame] = frame
            elif share:
                self._compress(tokens, row, frame, share, target)
        spare = tokens.separators.nonzero()[:, 0][: max(0, budget - sum(sizes))]
        target[spare] = spare
        return absorbed(target)

    def _relevance(self, tokens: VisualTokens, frames: list[Tensor]) -> Tensor:
        """[T] in fp64, in main memory."""
        if self.scorer is None:
            text = F.normalize(tokens.signal("text").detach().float(), dim=-1)
            unit = F.normalize(tokens.features.detach().float(), dim=-1)
            likeness = unit @ text.T  # [N, words]
            best = [likeness[frame].amax(dim=0).mean() if len(frame) else unit.new_tensor(-1.0) for frame in frames]
            return relative(torch.stack(best))
        score = torch.as_tensor(self.scorer(tokens)).detach().double().cpu()
        if score.dim() != 1 or not len(score) or not bool((score >= 0).all()) or not bool(score.isfinite().all()):
            raise ValueError(f"scorer= returned {score.tolist()}; expected one number >= 0 per frame of the video.")
        return score if len(score) == len(frames) else F.adaptive_avg_pool1d(score[None, None], len(frames))[0, 0]

    def _compress(self, tokens: VisualTokens, places: Tensor, frame: Tensor, share: int, target: Tensor) -> None:
        """Write into `target` [N] what each token of `frame` becomes a part of, -1 where it goes."""
        if self.within == "divprune":
            kept = frame[ops.greedy_diversity(tokens.features[frame][None], share, "maxmin")[0]]
            target[kept] = kept
        elif self.within == "uniform":
            kept = frame[((torch.arange(share, device=frame.device) + 0.5) * len(frame) / share).long()]
            target[kept] = kept
        else:
            _, h, w = tokens.span.grid
            if len(frame) == len(places) == h * w:
                cell = cell_map(h, w, share).flatten().to(frame.device)
            else:  # an incomplete grid: stretches of the tokens that are left
                cell = torch.arange(len(frame), device=frame.device) * share // len(frame)
            middle = torch.bincount(cell).cumsum(0) - (torch.bincount(cell) + 1) // 2  # as pool: a cell's middle member
            target[frame] = frame[cell.argsort(stable=True)[middle]][cell]


def relative(scores: Tensor) -> Tensor:
    """Scores of unknown scale [T] as relevance in (0, 1): the sigmoid of how far each lies from the mean, in fp64.

    In standard deviations; frames that score alike get 0.5 each.
    """
    scores = scores.detach().double().cpu()
    spread = scores.std(correction=0)
    return ((scores - scores.mean()) / spread).sigmoid() if spread > 1e-6 else torch.full_like(scores, 0.5)
