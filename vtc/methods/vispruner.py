"""VisPruner: what CLS looks at, and of the rest what is left when look-alikes have gone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class VisPruner(Method):
    """Important tokens, and diverse ones.

    The tokens with most CLS attention; of the others look-alikes go, round by round, until the budget is met.

    Source: arXiv 2412.01818, section 3, and its released code at a089bff. A round lists the others (at first by falling
    attention), takes the first, third, fifth ... of the list, and drops those `step` of them that are most like one of
    the second, fourth, sixth ...; the next list has those that are left of the former, most alike first, and then the
    latter. Similarity is the cosine of what the vision tower makes of tokens before the projector, attention that of
    the layer that the features come from. The code cannot go on with an odd number of tokens; here the list may be odd,
    and a round drops no more than it may. A tower without a CLS token gives received attention instead. Each crop
    chooses for itself, with its share of the budget.

    Args:
        important: share of the kept tokens that have most attention, rounded down.
        step: tokens that a round drops.
    """

    name = "vispruner"
    keep: int | float = 64
    important: float = 0.5
    step: int = 8
    needs = ("cls_attention", "tower_features")
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper(
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", "2412.01818"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.important, "important", 0, 1, what="a share of the kept tokens")
        check_number(self.step, "step", 1, integer=True, what="a number of tokens")

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = len(tokens.features), self.count(tokens)
        score = tokens.signal("cls_attention").float().sum(dim=0)
        order = score.neg().argsort(stable=True)  # upwards, as that puts NaN last
        first = int(k * self.important)
        rest = order[first:]
        if k == first:
            left = rest[:0]
        else:
            unit = F.normalize(tokens.signal("tower_features").detach().float()[rest], dim=-1)
            left = rest[_without_look_alikes(unit @ unit.T, k - first, self.step)]
        return Selection.prune(torch.cat([order[:first], left]).sort().values, n, ascending=True)


def _without_look_alikes(cosine: Tensor, k: int, step: int) -> Tensor:
    """LongTensor [k] of the tokens whose cosines are [R, R].

    Example: five tokens, three to be left, step 8: of the first, third and fifth the two most like the second or the
    fourth go.
    """
    cosine = torch.where(cosine.isfinite(), cosine, 0.0)
    left = torch.arange(len(cosine), device=cosine.device)
    while len(left) > k:
        even, odd = left[::2], left[1::2]
        likeness = cosine[even[:, None], odd].amax(dim=1)
        falling = even[likeness.neg().argsort(stable=True)]
        left = torch.cat([falling[min(step, len(left) - k) :], odd])
    return left
