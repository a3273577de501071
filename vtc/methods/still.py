"""PruneVid's stages before the language model: segments of a clip, what stands still through them, and clusters.

Source: arXiv 2412.16117, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.methods.base import Method
from vtc.methods.clips import absorbed, frame_rows, share_out
from vtc.selection import Selection
from vtc.signals import VisualTokens

Run = tuple[int, int]  # frames [first, last)


@dataclass(frozen=True, kw_only=True)
class MergeStill(Method):
    """PruneVid's first two stages."""

    ratio: float | None = None
    cut: float = 0.25
    tau: float = 0.8
    neighbours: int = 7
    needs = ("grid",)
    merges = True
    modality = ("video",)
    scopes = ("clip",)

    @property
    def title(self) -> str:
        return "prunevid"

    def select(self, tokens: VisualTokens) -> Selection:
        x, rows, n = tokens.features.detach().float(), frame_rows(tokens), len(tokens.features)
        patches = int((rows >= 0).sum())
        budget = n if self.ratio is not None else self.count(tokens)
        runs = segments(frame_means(x, rows), max(1, int(self.cut * len(rows))), self.neighbours)
        save = n if self.ratio is not None else max(0, patches - budget)
        still = still_places(F.normalize(x, dim=-1), rows, runs, self.tau, save)
        stand = torch.arange(n, device=rows.device)  # the token that stands for each one after merging over time
        groups: list[Tensor] = []  # tokens that stand for themselves or a still place, and are clustered together
        for (first, last), fixed in zip(runs, still, strict=True):
            held = rows[first:last, fixed]  # [t, S]
            there = held >= 0
            opening = held.gather(0, there.long().argmax(dim=0, keepdim=True)) if len(held) else held
            stand[held[there]] = opening.expand_as(held)[there]
            groups += [opening.flatten(), *(row[row >= 0] for row in rows[first:last, ~fixed])]
        sizes = [len(group) for group in groups]
        if self.ratio is None:
            shares = share_out(budget, sizes, sizes)
        else:
            shares = [max(1, int(self.ratio * size)) if size else 0 for size in sizes]
        means = ops.segment_mean(x, stand, n)
        centre = torch.full_like(stand, -1)
        for group, share in zip(groups, shares, strict=True):
            if share:
                centres, member = ops.dpc_knn(means[group], share, self.neighbours)
                centre[group] = group[centres[member]]
        spare = tokens.separators.nonzero()[:, 0][: max(0, budget - patches)]
        centre[spare] = spare
        return absorbed(centre[stand])


def segments(frames: Tensor, most: int, neighbours: int) -> list[Run]:
    """Cut a clip into runs of frames that are alike: frames [T, D], one mean feature each -> runs that cover them all.

    DPC-KNN finds `most` clusters; of each cluster the longest run stays, and its other runs, like runs of one frame,
    join the longer of their neighbours.
    """
    _, member = ops.dpc_knn(frames, min(most, len(frames)), neighbours)
    runs = _runs(member.tolist())
    longest = {name: max(last - first for own, first, last in runs if own == name) for name, _, _ in runs}
    names, lengths = [name for name, _, _ in runs], [last - first for _, first, last in runs]
    for i, (name, first, last) in enumerate(runs):
        left, right = (lengths[i - 1] if i else 0), (lengths[i + 1] if i + 1 < len(runs) else 0)
        if (last - first == 1 or last - first < longest[name]) and left + right:
            near = i - 1 if left >= right else i + 1
            names[i], lengths[i] = names[near], lengths[near] + last - first
    labels = [name for name, (_, first, last) in zip(names, runs, strict=True) for _ in range(first, last)]
    return [(first, last) for _, first, last in _runs(labels)]


def _runs(labels: list[int]) -> list[tuple[int, int, int]]:
    """(label, first, last) of each run of equal labels."""
    edges = [i for i in range(1, len(labels)) if labels[i] != labels[i - 1]]
    return [(labels[a], a, b) for a, b in zip([0, *edges], [*edges, len(labels)], strict=True)]


def still_places(unit: Tensor, rows: Tensor, runs: list[Run], tau: float, save: int) -> Tensor:
    """Which places do not change through a run: BoolTensor [runs, P].

    A place is still if the mean cosine over all pairs of its tokens exceeds `tau`. The most still come first, and
    merging them all over time saves at most `save` tokens.

    Args:
        unit: [N, D], normalised features. rows: LongTensor [T, P], -1 = no token.
    """
    there = (rows >= 0).float()
    x = unit[rows.clamp(min=0)] * there[..., None]  # [T, P, D]
    likeness, count = [], []
    for first, last in runs:
        size = there[first:last].sum(dim=0)  # [P]
        own = x[first:last]
        pairs = own.sum(dim=0).square().sum(dim=-1) - own.square().sum(dim=(0, 2))  # both orders
        likeness.append(torch.where(size > 1, pairs / (size * (size - 1)).clamp(min=1), -2.0))
        count.append(size)
    alike, saved = torch.stack(likeness).flatten(), torch.stack(count).flatten() - 1
    alike = alike.masked_fill(alike <= tau, -torch.inf)
    order = alike.argsort(descending=True, stable=True)
    fits = (saved[order].clamp(min=0) * alike[order].isfinite()).cumsum(dim=0) <= save
    still = torch.zeros_like(fits).scatter_(0, order, fits & alike[order].isfinite())
    return still.view(len(runs), -1)


def frame_means(x: Tensor, rows: Tensor) -> Tensor:
    """Mean feature of each frame: x [N, D], rows LongTensor [T, P] -> [T, D], 0 for a frame without tokens."""
    number = torch.full((len(x),), -1, dtype=torch.long, device=rows.device)
    number[rows[rows >= 0]] = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)[rows >= 0]
    return ops.segment_mean(x, number, len(rows))
