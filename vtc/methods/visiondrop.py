"""VisionDrop: visual tokens judge each other, before the language model and at three depths inside it."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.budget import check_keep
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.methods.shared.contextual import absorb
from vtc.methods.visionzip import VisionZip
from vtc.selection import Selection
from vtc.signals import VisualTokens

# tokens before the language model and after each quarter of it, for an average of 32 (released configuration)
_TOTAL = (48, 35, 26, 19)
_CONTEXTUAL = (6, 5, 4, 3)
_MEAN = 32


@dataclass(frozen=True, kw_only=True)
class VisionDrop(Method):
    """Progressive dominant-plus-contextual compression by visual-to-visual attention only.

    Source: arXiv 2506.22283, section 3 and the released configuration: VisionZip's rule with 48 tokens before the
    language model, then 35, 26 and 19 after a quarter, a half and three quarters of its layers, an average of 32.
    Inside, tokens are scored by the attention that the picture's own tokens give them (queries and keys of the next
    layer), and the rest is absorbed by key similarity.

    Args:
        keep: the average over the decoder layers, as in the paper; the four counts scale with it.
        average: False = `keep` is what is left at the end.
    """

    name = "visiondrop"
    keep: int | float = 32
    average: bool = True
    stage = "input"
    exact_count = False  # `keep` is an average
    needs = ("cls_attention", "keys", "visual_attention", "layer_keys")
    merges = True
    positions_default = "compact"
    paper = Paper("Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment", "2506.22283")

    def parts(self) -> tuple[Method, ...]:
        before, *inside = (_times(self.keep, n / (_MEAN if self.average else _TOTAL[-1])) for n in _TOTAL)
        return (
            VisionZip(keep=before, contextual=_CONTEXTUAL[0] / _TOTAL[0], positions=self.positions),
            VisualVote(keeps=tuple(inside), keep=inside[-1], positions=self.positions),
        )

    def select(self, tokens: VisualTokens) -> Selection:
        return self.parts()[0].select(tokens)


@dataclass(frozen=True, kw_only=True)
class VisualVote(LayerMethod):
    """VisionDrop's stages inside the language model."""

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    needs = ("visual_attention", "layer_keys")
    merges = True
    positions_default = "compact"

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = tokens.features.shape[0], self.count(tokens)
        step = min(tokens.step + 1, len(_TOTAL) - 1)
        few = 0 if k == n else min(round(k * _CONTEXTUAL[step] / _TOTAL[step]), k - 1)
        dominant = top_k(tokens.signal("visual_attention"), k - few)
        if few == 0:
            return Selection.prune(dominant, n)
        keys = tokens.signal("layer_keys").float().mean(dim=1)  # mean over heads
        return absorb(dominant, few, keys, tokens.separators)


def _times(keep: int | float, factor: float) -> int | float:
    """A budget times `factor`; a fraction stays one."""
    if isinstance(keep, int):
        return max(1, round(keep * factor))
    return check_keep(min(1.0, keep * factor))
