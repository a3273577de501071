"""VisionDrop: visual tokens judge each other, before the language model and at three depths inside it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vtc.budget import proportional, token_count
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.shared.contextual import absorb
from vtc.methods.visionzip import VisionZip
from vtc.selection import Selection
from vtc.signals import VisualTokens

# tokens before the language model and after each quarter of it (released configuration); their mean is 32
_TOTAL = (48, 35, 26, 19)
_CONTEXTUAL = (6, 5, 4, 3)


@dataclass(frozen=True, kw_only=True)
class VisionDrop(Method):
    """What visual tokens attend to, step by step.

    Progressive dominant-plus-contextual compression by visual-to-visual attention only.

    Source: arXiv 2506.22283, section 3 and the released configuration: VisionZip's rule with 48 tokens before the
    language model, then 35, 26 and 19 after a quarter, a half and three quarters of its layers, an average of 32.
    Inside, tokens are scored by the attention that the picture's own tokens give them (queries and keys of the next
    layer), and the rest is absorbed by key similarity. The stage before the language model works within each crop, as
    VisionZip; those inside it on all that is left of a picture.

    Args:
        keep: the average over the decoder layers, as in the paper. The four counts scale together, up to the picture's
            size; what that cuts off the first ones, the later ones get, so that the average is met at every budget.
        average: False = `keep` is what is left at the end.
        cls: pass each crop's CLS token on, as the first of the dominant ones (see `vtc.VisionZip`); the released code
            does.
    """

    name = "visiondrop"
    keep: int | float = 32
    average: bool = True
    cls: bool = False
    stage = "input"
    exact_count = False  # `keep` is an average
    needs = ("cls_attention", "keys", "visual_attention", "layer_keys")
    merges = True
    appends = True
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper("Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment", "2506.22283")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # which check the options

    def parts(self) -> tuple[Method, ...]:
        share = _CONTEXTUAL[0] / _TOTAL[0]
        same: dict[str, Any] = dict(keep=self.keep, average=self.average, positions=self.positions)
        return Opening(**same, contextual=share, scope=self.scope, cls=self.cls), VisualVote(**same)

    def select(self, tokens: VisualTokens) -> Selection:
        return self.parts()[0].select(tokens)


@dataclass(frozen=True, kw_only=True)
class Opening(VisionZip):
    """VisionDrop's stage before the language model."""

    average: bool = True

    @property
    def title(self) -> str:
        return "visiondrop"

    def count(self, tokens: VisualTokens) -> int:
        if tokens.budget is not None:
            return super().count(tokens)
        return min(_opening(self.keep, self.average, tokens.total, tokens.depth), tokens.features.shape[0])


@dataclass(frozen=True, kw_only=True)
class VisualVote(LayerMethod):
    """VisionDrop's stages inside the language model."""

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    needs = ("visual_attention", "layer_keys")
    merges = True
    appends = True
    positions_default = "compact"

    @property
    def title(self) -> str:
        return "visiondrop"

    def counts(self, total: int, depth: int) -> tuple[int, ...]:
        which, wanted = self._kept_steps(depth), token_count(self.keep, total)
        shape = [_TOTAL[step + 1] for step in which.values()]
        if not self.average:
            return tuple(min(total, round(wanted * share / _TOTAL[-1])) for share in shape)
        first, edges = _opening(self.keep, self.average, total, depth), [*which, depth]
        left = (wanted * depth - first * edges[0]) / (depth - edges[0])  # on average, in the layers from the first step
        return proportional(shape, [end - start for start, end in pairwise(edges)], left, first)

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = tokens.features.shape[0], self.count(tokens)
        step = min(tokens.step + 1, len(_TOTAL) - 1)
        few = 0 if k == n else min(round(k * _CONTEXTUAL[step] / _TOTAL[step]), k - 1)
        dominant = top_k(tokens.signal("visual_attention"), k - few)
        if few == 0:
            return Selection.prune(dominant, n)
        keys = tokens.signal("layer_keys").float().mean(dim=1)  # mean over heads
        return absorb(dominant, few, keys, tokens.separators if tokens.separated else None)


def _opening(keep: int | float, average: bool, total: int, depth: int) -> int:
    """How many of `total` tokens the language model gets.

    Args:
        depth: of the language model; 0 = unknown: any that has quarters.
    """
    wanted = token_count(keep, total)
    if not average:
        return min(total, round(wanted * _TOTAL[0] / _TOTAL[-1]))
    which = VisualVote()._kept_steps(depth or 4)
    edges = [0, *which, depth or 4]
    shape = [_TOTAL[0], *(_TOTAL[step + 1] for step in which.values())]
    return proportional(shape, [end - start for start, end in pairwise(edges)], wanted, total)[0]
