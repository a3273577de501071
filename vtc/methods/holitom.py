"""HoliTom: the clip is cut where that lets most of it merge over time; attention and clusters do the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Paper, rest_of, top_k
from vtc.methods.shared.clips import cosines
from vtc.methods.shared.inner import InnerMethod
from vtc.methods.shared.segments import Run, most_still
from vtc.methods.shared.still import StillMethod
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class HoliTom(InnerMethod, StillMethod):
    """Segments, whose still places are averaged.

    Segments by dynamic programming, still places averaged over time, then every part shares the budget.

    Source: arXiv 2505.21334, section 3. A place is still through a segment if its cosine from each frame to the next
    exceeds `tau` (0.8; 0.65 at a tenth of the tokens), and the segments are those that save most tokens when still
    places become their average over time. What the budget leaves is shared in proportion: still places of a segment are
    clustered (DPC-KNN); of a frame's other tokens those that receive most attention in the vision tower stay, `context`
    of the share goes to clusters of the rest. If merging over time alone saves more than the budget asks for, only the
    most still places merge. `inner` adds the merging inside the language model, without which the paper's tables name
    the method "w/o M".

    The released code rounds each part's share by itself, so that it keeps up to 9 % more than its nominal ratio in
    clips of 8 frames; here `keep` is exact. It puts still tokens before a segment's others, here all stand in the order
    of the grid. Its environment variable NO_BETA makes clusters means, as they are here; unset, as in all published
    scripts, a centre weighs 0.6: `centre=0.6`.

    Args:
        keep: exact; the paper keeps 10 to 25 %. With `inner`, what enters the language model.
        tau: least cosine from frame to frame.
        context: share of a frame's budget that goes to clusters; 0 = attention only, as the code's default.
        longest: most frames of a segment; None = no limit.
        neighbours: k of DPC-KNN, as released never more than the clusters that are asked for.
        centre: weight of a cluster's centre, the mean of its other members weighs the rest; None = clusters are means.
        inner: share of what is left that merges inside the language model, 0.5 in the paper; None = nothing does.
        layer: before which `inner` acts: 18 of the paper's 28, or any decoder layer or share of the depth.
    """

    name = "holitom"
    keep: int | float = 0.2
    context: float = 0.0
    longest: int | None = None
    centre: float | None = None
    layer: int | float = 18 / 28
    needs = ("grid", "received_attention")
    positions_default = "compact"
    paper = Paper("HoliTom: Holistic Token Merging for Fast Video Large Language Models", "2505.21334")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.context, "context", 0, 1, what="a share of a frame's budget")
        if self.longest is not None:
            check_number(self.longest, "longest", 1, integer=True, what="a number of frames")
        if self.centre is not None:
            check_number(self.centre, "centre", 0, 1, what="the weight of a cluster's centre (None = as its others)")

    def _inside(self, inner: float) -> MergeInside:
        keep = self._left(1 - inner)
        return MergeInside(keep=keep, share=inner, layers=(self.layer,), positions=self.positions)

    def _still(self, tokens: VisualTokens, rows: Tensor, save: int) -> tuple[list[Run], Tensor]:
        alike = cosines(tokens, rows, (1,))[1:]  # [T - 1, P], a gap ends what is still
        runs = best_runs(alike > self.tau, self.longest)
        likeness = [
            alike[first : last - 1].amin(dim=0) if last - first > 1 else torch.full_like(alike[:1].sum(dim=0), -2.0)
            for first, last in runs
        ]
        lengths = torch.tensor([last - first - 1 for first, last in runs], device=rows.device)
        return runs, most_still(torch.stack(likeness), lengths[:, None].expand(-1, rows.shape[1]), self.tau, save)

    def _centres(self, tokens: VisualTokens, means: Tensor, group: Tensor, share: int, fixed: bool) -> Tensor:
        if fixed or share == len(group):
            return self._clusters(means[group], share)
        few = round(self.context * share)
        score = tokens.signal("received_attention").sum(dim=0)[group]
        place = torch.full_like(group, -1)
        dominant = top_k(score, share - few)
        place[dominant] = dominant
        if few:
            rest = rest_of(dominant, len(group))
            place[rest] = rest[self._clusters(means[group[rest]], few)]
        return place

    def _clusters(self, x: Tensor, count: int) -> Tensor:
        """LongTensor [S]: which of the tokens x [S, D] is the centre of each one's cluster."""
        centres, member = ops.dpc_knn(x, count, min(self.neighbours, count))
        return centres[member]

    def _outputs(self, stand: Tensor, centre: Tensor) -> Selection:
        found = super()._outputs(stand, centre)
        if self.centre is None:
            return found
        one, zero = torch.ones_like(stand), torch.zeros_like(stand)
        frames = zero.scatter_add(0, stand, one)[stand]  # tokens that are averaged over time first
        token = torch.arange(len(stand), device=stand.device)
        place = (stand == token) & (centre >= 0)  # one token for each
        mine = centre[stand].clamp(min=0)
        others = zero.scatter_add(0, centre[place], one[place])[mine] - 1  # places in the same cluster
        share = torch.where(stand == mine, self.centre, (1 - self.centre) / others.clamp(min=1))
        share = torch.where(others == 0, 1.0, share)
        return Selection(found.anchor, found.source, torch.where(found.source >= 0, share / frames, 0.0))


@dataclass(frozen=True, kw_only=True)
class MergeInside(LayerMethod):
    """HoliTom inside the language model: what the prompt's last token looks at least merges into what is like it.

    Of the tokens left, `share` goes by the attention of the layer before (mean over heads). Each of them, in order, is
    averaged with the kept token whose hidden state was most similar (cosine): one after the other, half and half, as in
    the released code, so that of several the last weighs half. Example: three that join one kept token weigh 1/8, 1/4
    and 1/2, the kept one 1/8.

    The code keeps the positions of what is left; here `positions` says so for both stages together.
    """

    share: float = 0.5
    layers: tuple[int | float, ...] = (18 / 28,)
    reads = "previous"
    shape = (0.5,)
    needs = ("last_attention",)
    query_aware = True
    merges = True
    modality = ("video",)

    @property
    def title(self) -> str:
        return "holitom"

    def select(self, tokens: VisualTokens) -> Selection:
        x, n = tokens.features.detach().float(), len(tokens.features)
        kept = top_k(tokens.signal("last_attention"), max(1, round(n * (1 - self.share))))
        gone = rest_of(kept, n)
        unit = F.normalize(x, dim=-1)
        joins = (unit[gone] @ unit[kept].T).argmax(dim=1) if len(gone) else gone  # [R], which of those kept
        count = torch.zeros_like(kept).scatter_add(0, joins, torch.ones_like(joins))
        order = joins.argsort(stable=True)
        turn = torch.empty_like(order)  # how many have joined the same before
        turn[order] = torch.arange(len(gone), device=kept.device) - (count.cumsum(dim=0) - count)[joins[order]]
        source, weight = torch.empty(n, dtype=torch.long, device=kept.device), torch.empty(n, device=kept.device)
        source[kept], source[gone] = torch.arange(len(kept), device=kept.device), joins
        weight[kept], weight[gone] = 0.5 ** count.float(), 0.5 ** (count[joins] - turn).float()
        return Selection(kept, source, weight)


def best_runs(alike: Tensor, longest: int | None = None) -> list[Run]:
    """The cut of a clip of T frames that saves most tokens: alike BoolTensor [T - 1, P], is a place as a frame before?

    A run of t frames through which s places stay alike saves (t - 1) * s. Of equal cuts, the one with shorter runs at
    the end.
    """
    frames = len(alike) + 1
    if frames == 1:
        return [(0, 1)]
    # how many frames in a row each place has stayed as it is, up to each frame, [T, P]
    number = torch.arange(1, frames, device=alike.device)[:, None]
    since = number - torch.where(alike, 0, number).cummax(dim=0).values
    spans = torch.arange(1, frames, device=alike.device)  # steps inside a run
    places = (since[:, None, :] >= spans[:, None]).sum(dim=-1)  # [T - 1, steps]
    gain = (places * spans).tolist()
    best, start = [0], [0]
    for last in range(1, frames):
        best.append(best[-1])
        start.append(last)
        for steps in range(1, min(last + 1, longest or frames)):
            saved = gain[last - 1][steps - 1] + (best[last - steps - 1] if steps < last else 0)
            if saved > best[last]:
                best[last], start[last] = saved, last - steps
    runs, last = [], frames
    while last > 0:
        runs.append((start[last - 1], last))
        last = start[last - 1]
    return runs[::-1]
