"""HoliTom: the clip is cut where that lets most of it merge over time; attention and clusters do the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.method import Paper, top_k
from vtc.methods.shared.clips import cosines
from vtc.methods.shared.segments import Run, most_still
from vtc.methods.shared.still import StillMethod
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class HoliTom(StillMethod):
    """Segments by dynamic programming, still places averaged over time, then every part shares the budget.

    Source: arXiv 2505.21334, section 3. A place is still through a segment if its cosine from each frame to the next
    exceeds `tau` (0.8; 0.65 at a tenth of the tokens), and the segments are those that save most tokens when still
    places become their average over time. What the budget leaves is shared in proportion: still places of a segment are
    clustered (DPC-KNN); of a frame's other tokens those that receive most attention in the vision tower stay, `context`
    of the share goes to clusters of the rest. If merging over time alone saves more than the budget asks for, only the
    most still places merge. Clusters become means; the released code weights centres more unless an environment
    variable says otherwise. Its merging inside the language model is left out: add `vtc.FastV` for a prune there.

    Args:
        keep: exact; the paper keeps 10 to 25 %.
        tau: least cosine from frame to frame.
        context: share of a frame's budget that goes to clusters; 0 = attention only, as the code's default.
        longest: most frames of a segment; None = no limit.
    """

    name = "holitom"
    keep: int | float = 0.2
    context: float = 0.0
    longest: int | None = None
    needs = ("grid", "received_attention")
    positions_default = "compact"
    paper = Paper("HoliTom: Holistic Token Merging for Fast Video Large Language Models", "2505.21334")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.context, "context", 0, 1, what="a share of a frame's budget")
        if self.longest is not None:
            check_number(self.longest, "longest", 1, integer=True, what="a number of frames")

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
            return super()._centres(tokens, means, group, share, fixed)
        few = round(self.context * share)
        score = tokens.signal("received_attention").sum(dim=0)[group]
        place = torch.full_like(group, -1)
        dominant = top_k(score, share - few)
        place[dominant] = dominant
        if few:
            rest = (place < 0).nonzero()[:, 0]
            centres, member = ops.dpc_knn(means[group[rest]], few, self.neighbours)
            place[rest] = rest[centres[member]]
        return place


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
