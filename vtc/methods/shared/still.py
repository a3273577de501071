"""What stands still becomes one token: the base of PruneVid and HoliTom, and PruneVid's own way to find it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Method
from vtc.methods.shared.clips import absorbed, frame_rows, share_out
from vtc.methods.shared.segments import Run, frame_means, segments, still_places
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class StillMethod(Method):
    """Base of methods that average over time what stands still, then compress what is left, part by part.

    A subclass says what stands still (`_still`) and may say how a part is compressed to its share (`_centres`).

    Args:
        tau: cosine above which a place is still. neighbours: k of DPC-KNN.
    """

    tau: float = 0.8
    neighbours: int = 7
    needs = ("grid",)
    merges = True
    modality = ("video",)
    scopes = ("clip",)
    #: outputs of a part as a share of its tokens; None = shares of `keep`
    ratio = None
    #: with `ratio`, parts of at most so many tokens are left as they are
    whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.tau, "tau", -1, 1, what="a cosine")
        check_number(self.neighbours, "neighbours", 1, integer=True, what="a number of tokens")

    def select(self, tokens: VisualTokens) -> Selection:
        rows, n = frame_rows(tokens), len(tokens.features)
        patches = int((rows >= 0).sum())
        budget = n if self.ratio is not None else self.count(tokens)
        runs, still = self._still(tokens, rows, n if self.ratio is not None else max(0, patches - budget))
        stand = torch.arange(n, device=rows.device)  # the token that stands for each one after merging over time
        groups: list[tuple[Tensor, bool]] = []  # what is clustered together: still places of a run, a frame's others
        for (first, last), fixed in zip(runs, still, strict=True):
            held = rows[first:last, fixed]  # [t, S]
            there = held >= 0
            opening = held.gather(0, there.long().argmax(dim=0, keepdim=True))
            stand[held[there]] = opening.expand_as(held)[there]
            groups += [(opening.flatten(), True), *((row[row >= 0], False) for row in rows[first:last, ~fixed])]
        sizes = [len(group) for group, _ in groups]
        if self.ratio is None:
            shares = share_out(budget, sizes, sizes)
        else:
            shares = [size if size <= self.whole else max(1, int(self.ratio * size)) for size in sizes]
        means = ops.segment_mean(tokens.features.detach().float(), stand, n)
        centre = torch.full_like(stand, -1)
        for (group, fixed), share in zip(groups, shares, strict=True):
            if share:
                part = self._centres(tokens, means, group, share, fixed)
                centre[group] = torch.where(part >= 0, group[part.clamp(min=0)], -1)
        spare = tokens.separators.nonzero()[:, 0][: max(0, budget - patches)]
        centre[spare] = spare
        return self._outputs(stand, centre)

    def _outputs(self, stand: Tensor, centre: Tensor) -> Selection:
        """What the tokens [N] become that stand for each one over time, and of which cluster these are (-1 = none)."""
        return absorbed(centre[stand])

    def _still(self, tokens: VisualTokens, rows: Tensor, save: int) -> tuple[list[Run], Tensor]:
        """Runs of frames, and the places BoolTensor [runs, P] that stand still through each: `save` tokens at most."""
        raise NotImplementedError

    def _centres(self, tokens: VisualTokens, means: Tensor, group: Tensor, share: int, fixed: bool) -> Tensor:
        """Which of the tokens `group` [S] each of them becomes a part of, LongTensor [S] of `share` values; -1 = none.

        Args:
            means: [N, D], features with still places averaged. fixed: whether these are still places.
        """
        centres, member = ops.dpc_knn(means[group], share, self.neighbours)
        return centres[member]


@dataclass(frozen=True, kw_only=True)
class MergeStill(StillMethod):
    """PruneVid's first two stages."""

    ratio: float | None = None
    whole: int = 14
    cut: float = 0.25

    @property
    def title(self) -> str:
        return "prunevid"

    def _still(self, tokens: VisualTokens, rows: Tensor, save: int) -> tuple[list[Run], Tensor]:
        x = tokens.features.detach().float()
        runs = segments(frame_means(x, rows), max(1, int(self.cut * len(rows))), self.neighbours)
        unit = F.normalize(x, dim=-1)
        return runs, still_places(unit, rows, runs, self.tau, save)


def parts_of(tokens: VisualTokens) -> Tensor:
    """LongTensor [N]: a number for the part each token was made in, the same for tokens of one part.

    `select` leaves two kinds of outputs: those that stand for a place through a segment, whose tokens come from several
    frames, and those of a single frame. Segments do not overlap, so tokens through frames that do are of one segment.
    Example, (first, last) frame of what five outputs are made of: (0, 3) (0, 3) (1, 1) (1, 1) (4, 5) -> three parts
    {0, 1}, {2, 3}, {4}. Separators are a part of their own.
    """
    first, last = _extent(tokens)
    frames = max(tile.t for tile in tokens.span.tiles)
    after = torch.arange(frames - 1, device=first.device)[:, None]  # the step to the next frame
    inside = ((first <= after) & (after < last)).any(dim=1)
    segment = torch.cat([inside.new_zeros(1, dtype=torch.long), (~inside).cumsum(dim=0)])
    return torch.where(first < last, segment[first.clamp(min=0)], frames + 1 + first)


def _extent(tokens: VisualTokens) -> tuple[Tensor, Tensor]:
    """LongTensors [N]: the first and the last frame of what each token is made of; -1 for separators."""
    source = tokens.signal("source")  # [S]
    frame = torch.full((tokens.total,), -1, dtype=torch.long, device=source.device)
    for tile in tokens.span.tiles:
        number = torch.arange(tile.t, device=source.device)[:, None]
        where = tile.indices().flatten(1).to(source.device)
        frame[where] = number.expand_as(where)
    used = source >= 0
    first = frame.new_full((len(tokens.features),), len(frame))
    last = frame.new_full((len(tokens.features),), -1)
    first = first.scatter_reduce(0, source[used], frame[used], "amin")
    return first, last.scatter_reduce(0, source[used], frame[used], "amax")
