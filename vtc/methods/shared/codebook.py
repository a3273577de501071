"""A codebook of visual tokens: cosine k-means, its elbow, and the Selection that it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtc import ops
from vtc.checks import check_number
from vtc.selection import Selection

ELBOWS = ("curvature", "released")
MAGNITUDES = ("norm", "mean", "unit")
EQUAL = 1e-5  # difference of cosines that means nothing
BLOCK = 4096  # tokens compared with their centres at a time
LARGEST = 2**26  # numbers of a padded batch that are clustered at a time


def check_range(adaptive: object) -> None:
    """Raise TypeError or ValueError with one sentence if `adaptive` is no range of at least three numbers of codes."""
    if adaptive is None:
        return
    if not isinstance(adaptive, tuple | list) or len(adaptive) != 2:
        raise TypeError(f"adaptive={adaptive!r} is not a pair of whole numbers (low, high), such as (12, 32).")
    low = check_number(adaptive[0], "adaptive[0]", 1, integer=True, what="the fewest codes")
    check_number(adaptive[1], "adaptive[1]", low + 2, integer=True, what="the most codes, two more than the fewest")


def check_cells(cells: object) -> None:
    """Raise TypeError or ValueError with one sentence if `cells` is no (t, h, w)."""
    if not isinstance(cells, tuple) or len(cells) != 3:
        raise TypeError(f"cells={cells!r} is not a grid (t, h, w).")
    for i, side in enumerate(cells):
        check_number(side, f"cells[{i}]", 1, integer=True, what="a side of the grid (t, h, w)")


def elbow(x: Tensor, low: int, high: int, rule: str) -> int:
    """How many codes tokens [N, D] ask for: where the distortion of k-means over k bends, for k from low to high.

    Distortion is the sum of squared distances of unit tokens to the mean of their cluster (not made unit again); with
    no cluster, their own squared length. One k below the range and one above are tried, too, so that its ends can bend.
    """
    n = len(x)
    low, high = min(low, n), min(high, n)
    curve = []
    unit = F.normalize(x.float().nan_to_num(0.0, 0.0, 0.0), dim=-1)
    total = float(unit.double().square().sum())
    first, last = (low, high) if rule == "released" else (low - 1, min(n, high + 1))
    for k in range(first, last + 1):
        if k == 0:
            curve.append(total)
            continue
        centres, label = ops.kmeans(unit[None], k, "cosine")
        size = torch.bincount(label[0], minlength=k)
        curve.append(total - float((size * centres[0].double().square().sum(dim=-1)).sum()))
    bends = torch.tensor(curve).diff(n=2)  # of k = first + 1 and on
    if rule == "released":
        return min(n, max(12, 4 + (int(bends.argmax()) if len(bends) else 0)))
    if curve[low - first] <= 1e-6 * n:
        return low  # nothing is left to explain
    return low + int(bends.argmax()) if len(bends) else high


def codebooks(many: Sequence[Tensor], counts: Sequence[int], magnitude: str) -> list[Selection]:
    """One Selection of `counts[i]` codes per span, tokens `many[i]` [N, D]; equal counts are clustered together."""
    found: list[Selection | None] = [None] * len(many)
    groups: dict[int, list[int]] = {}
    for i, (x, k) in enumerate(zip(many, counts, strict=True)):
        if k >= len(x):
            found[i] = Selection.identity(len(x), x.device)
        else:
            groups.setdefault(k, []).append(i)
    for k, members in groups.items():
        step = max(1, LARGEST // max(many[i].numel() for i in members))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            rows = [many[i].detach() for i in part]
            sizes = [len(x) for x in rows]
            lengths = torch.tensor(sizes, device=rows[0].device) if len(set(sizes)) > 1 else None
            stacked = rows[0][None] if len(rows) == 1 else pad_sequence(rows, batch_first=True)
            centres, label = ops.kmeans(stacked, k, "cosine", lengths=lengths)
            for i, x, own, mine in zip(part, rows, centres, label, strict=True):
                found[i] = selection(x, own, mine[: len(x)].clone(), magnitude)
    return [one for one in found if one is not None]


def selection(x: Tensor, centres: Tensor, label: Tensor, magnitude: str) -> Selection:
    """Tokens x [N, D] in clusters `label` [N] around `centres` [K, D] -> K outputs at their medoids, in their order."""
    n, k = len(x), len(centres)
    x = x.float().nan_to_num(0.0, 0.0, 0.0)
    length = x.norm(dim=-1)  # [N]
    near = _cosines(x, length, F.normalize(centres.float(), dim=-1), label)
    anchor = _first_best(near, label, k)
    empty = (anchor == n).nonzero()[:, 0]
    if len(empty):
        near[anchor[anchor < n]] = torch.inf  # a medoid stays with its code
        moved = near.argsort(stable=True)[: len(empty)]
        label[moved], anchor[empty] = empty, moved
    anchor, order = anchor.sort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(k, device=x.device)
    source = rank[label]
    size = torch.bincount(source, minlength=k).float()
    weight = 1 / size[source]
    if magnitude != "mean":
        short = torch.where(length > 0, weight / length, 0.0)  # makes the mean of the unit members
        mean = ops.segment_sum(x, source, short, k).norm(dim=-1)  # [K]
        long = ops.segment_mean(length[:, None], source, k)[:, 0] / mean.clamp(min=1e-6)
        weight = short if magnitude == "unit" else torch.where(size[source] == 1, 1.0, short * long[source])
    return Selection(anchor, source, weight)


def _cosines(x: Tensor, length: Tensor, ends: Tensor, label: Tensor) -> Tensor:
    """Of each of x [N, D], so long, with the one of the unit rows `ends` [K, D] that is its `label`: [N]."""
    blocks = zip(x.split(BLOCK), length.clamp(min=1e-12).split(BLOCK), label.split(BLOCK), strict=True)
    return torch.cat([(part / long[:, None] * ends[own]).sum(dim=-1) for part, long, own in blocks])


def _first_best(score: Tensor, label: Tensor, k: int) -> Tensor:
    """LongTensor [k]: of each label's tokens the one of highest score, the first of equals; N where there is none.

    Equal is what differs by less than rounding may add: two tokens are equally near their mean, on any device.
    """
    n = len(score)
    best = torch.full((k,), -torch.inf, device=score.device).scatter_reduce(0, label, score, "amax")
    index = torch.where(score >= best[label] - EQUAL, torch.arange(n, device=score.device), n)
    return torch.full((k,), n, device=score.device).scatter_reduce(0, label, index, "amin")
