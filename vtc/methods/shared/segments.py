"""Segments of a clip, and what stands still through them (PruneVid, arXiv 2412.16117, section 3.2)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops

Run = tuple[int, int]  # frames [first, last)


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


def cut(frames: Tensor, least: int, tau: float) -> list[Run]:
    """Cut a clip where a frame is unlike the one before: frames [T, D], one mean feature each -> runs that cover it.

    DySeg (FastVID, arXiv 2503.11187, section 3.2): between frames whose cosine is below `tau`, and between the least
    alike ones until there are `least` runs.
    """
    alike = F.cosine_similarity(frames[1:], frames[:-1], dim=-1)  # [T - 1]
    edges = {*alike.argsort(stable=True)[: least - 1].tolist(), *(alike < tau).nonzero()[:, 0].tolist()}
    return list(pairwise([0, *sorted(edge + 1 for edge in edges), len(frames)]))


def still_places(unit: Tensor, rows: Tensor, runs: list[Run], tau: float, save: int) -> Tensor:
    """Which places do not change through a run: BoolTensor [runs, P].

    A place is still if the mean cosine over all pairs of its tokens exceeds `tau`; `save` as in `most_still`.

    Args:
        unit: [N, D], normalised features. rows: LongTensor [T, P], -1 = no token.
    """
    there = (rows >= 0).float()
    likeness, count = [], []
    for first, last in runs:
        size = there[first:last].sum(dim=0)  # [P]
        own = unit[rows[first:last].clamp(min=0)].mul_(there[first:last, :, None])  # [t, P, D]
        pairs = own.sum(dim=0).square().sum(dim=-1) - own.square_().sum(dim=(0, 2))  # both orders
        likeness.append(torch.where(size > 1, pairs / (size * (size - 1)).clamp(min=1), -2.0))
        count.append(size)
    return most_still(torch.stack(likeness), torch.stack(count) - 1, tau, save)


def most_still(likeness: Tensor, saved: Tensor, tau: float, save: int) -> Tensor:
    """BoolTensor [runs, P]: places whose `likeness` [runs, P] exceeds `tau`, the most alike first, while the tokens
    `saved` [runs, P] by merging them over time are at most `save` in all."""
    runs, alike, saved = len(likeness), likeness.flatten(), saved.flatten()
    alike = alike.masked_fill(alike <= tau, -torch.inf)
    order = alike.argsort(descending=True, stable=True)
    fits = (saved[order].clamp(min=0) * alike[order].isfinite()).cumsum(dim=0) <= save
    still = torch.zeros_like(fits).scatter_(0, order, fits & alike[order].isfinite())
    return still.view(runs, -1)


def frame_means(x: Tensor, rows: Tensor) -> Tensor:
    """Mean feature of each frame: x [N, D], rows LongTensor [T, P] -> [T, D], 0 for a frame without tokens."""
    number = torch.full((len(x),), -1, dtype=torch.long, device=rows.device)
    number[rows[rows >= 0]] = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)[rows >= 0]
    return ops.segment_mean(x, number, len(rows))
