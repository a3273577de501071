"""VisionZip: dominant tokens by CLS attention, the rest merged into a few contextual ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.shared.contextual import absorb
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """Dominant tokens; the rest merges into a few.

    Dominant tokens stay; contextual tokens are evenly spaced among the rest and absorb what resembles them.

    Source: arXiv 2412.04467, section 3.2. Each remaining token goes to the contextual target whose key (vision tower,
    mean over heads) is most similar; a contextual token is its target plus the mean of what it absorbed, as the
    released code has it. Differences to that code: merging happens behind the projector, not before it. The language
    model gets no CLS token unless `cls` says so. Of any-resolution images the code shares out the budget equally, among
    crops of which the padding is still a part, and leaves out `image_newline`; here what the model makes of the crops
    (unpadded, scaled) is chosen among, so that a crop's share is in proportion to what is left of it, and
    `image_newline` is kept only where the budget goes beyond the crops.

    Args:
        contextual: share of the kept tokens that are contextual; the paper's budgets (54+10, 108+20, 162+30) all
            have 10/64.
        cls: pass the vision tower's CLS token on as the first token of each crop, as one of the dominant ones, as the
            released code does. It takes the place of the first token that has gone, or is merged into another; with
            positions="original" it stands, and counts, as that token. A crop that is kept whole has no place for it.
    """

    name = "visionzip"
    keep: int | float = 64
    contextual: float = 10 / 64
    cls: bool = False
    needs = ("cls_attention", "keys")
    merges = True
    appends = True
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper("VisionZip: Longer is Better but Not Necessary in Vision Language Models", "2412.04467")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.contextual, "contextual", 0, below=1, what="a share of the kept tokens")
        if self.cls and self.scope != "crop":
            raise ValueError(
                f'cls=True is about the CLS token of each crop, which scope="{self.scope}" takes no note of.'
            )

    def requires(self) -> tuple[str, ...]:
        return (*self.needs, "cls_token") if self.cls else self.needs

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = tokens.features.shape[0], self.count(tokens)
        few = 0 if k == n else min(round(self.contextual * k), k - 1)  # contextual tokens; at least one dominant
        ahead = self.cls and k < n
        dominant = top_k(tokens.signal("cls_attention").sum(dim=0), k - few - ahead)
        found = Selection.prune(dominant, n)
        if few:
            found = absorb(dominant, few, tokens.signal("keys"), tokens.separators if tokens.separated else None)
        return _led_by(tokens.signal("cls_token")[0], found, tokens.features) if ahead else found


def _led_by(token: Tensor, selection: Selection, features: Tensor) -> Selection:
    """`selection` of `features` [N, D] behind one more output, `token` [D], in place of the first that is no anchor."""
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    free.index_fill_(0, selection.anchor, False)
    place = free.nonzero()[0]  # [1]
    source = torch.where(selection.source >= 0, selection.source + 1, -1)
    source.index_fill_(0, place, 0)
    weight = selection.weight.index_fill(0, place, 1.0)
    rows = torch.cat([token[None].to(features), selection.apply(features)])
    return Selection(torch.cat([place, selection.anchor]), source, weight, rows)
