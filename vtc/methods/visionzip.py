"""VisionZip: dominant tokens by CLS attention, the rest merged into a few contextual ones."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.checks import check_number
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.shared.contextual import absorb
from vtc.selection import Selection
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """Dominant tokens stay; contextual tokens are evenly spaced among the rest and absorb what resembles them.

    Source: arXiv 2412.04467, section 3.2. Each remaining token goes to the contextual target whose key (vision tower,
    mean over heads) is most similar; a contextual token is its target plus the mean of what it absorbed, as the
    released code has it. Two differences to that code, which works before the projector: merging happens after it, and
    the tower's own CLS token, which the code counts among the dominant ones and passes on, is not available there.

    Args:
        contextual: share of the kept tokens that are contextual; the paper's budgets (54+10, 108+20, 162+30) all
            have 10/64.
    """

    name = "visionzip"
    keep: int | float = 64
    contextual: float = 10 / 64
    needs = ("cls_attention", "keys")
    merges = True
    appends = True
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper("VisionZip: Longer is Better but Not Necessary in Vision Language Models", "2412.04467")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.contextual, "contextual", 0, below=1, what="a share of the kept tokens")

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = tokens.features.shape[0], self.count(tokens)
        few = 0 if k == n else min(round(self.contextual * k), k - 1)  # contextual tokens; at least one dominant
        dominant = top_k(tokens.signal("cls_attention").sum(dim=0), k - few)
        if few == 0:
            return Selection.prune(dominant, n)
        return absorb(dominant, few, tokens.signal("keys"), tokens.separators)
