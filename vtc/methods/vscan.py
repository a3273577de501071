"""VScan: a global and a local look at the picture, then one cut in the middle of the language model."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from vtc import ops
from vtc.budget import layer_number, proportional, split_budget, token_count
from vtc.checks import check_number
from vtc.kernels.pictures import ranks
from vtc.methods.base.method import Method, Paper
from vtc.methods.fastv import FastV
from vtc.methods.shared.windows import top_of_each, windows
from vtc.selection import Selection
from vtc.signals import VisualTokens

SHAPE = (3, 1)  # tokens before and after the cut: 96 and 32, 64 on average


@dataclass(frozen=True, kw_only=True)
class VScan(Method):
    """A global and a local scan, then one cut.

    Half of the tokens by a late layer of the tower, half window by window by an early one; the rest is merged.

    Source: arXiv 2505.22654, section 3, and its released code. Of each window of the grid those with most CLS attention
    in a shallow layer stay, of the whole grid those with most in the layer that the features come from; every other
    token is averaged into the kept one that is most similar (behind the projector). Before the middle layer of the
    language model those stay that the prompt's last token attends to there. The code rounds the windows' shares down,
    so that fewer stay where they do not come out even; here they share by largest remainders, in proportion to their
    tokens. A tower without a CLS token gives received attention instead. Each crop chooses for itself.

    Args:
        keep: the average over the decoder layers, as in the paper: three times as many before the cut as after it.
        average: False = `keep` is what is left at the end.
        local: share of the tokens that windows choose.
        window: side of a window, in tokens (6 of LLaVA's 24; 4 for Qwen2.5-VL, as released).
        shallow: layer of the tower that windows choose by: an int (0-based), or a share of its depth.
        cut: where the second stage is, a share of the decoder layers.
    """

    name = "vscan"
    keep: int | float = 64
    average: bool = True
    local: float = 0.5
    window: int = 6
    shallow: int | float = 0.22
    cut: float = 0.5
    stage = "input"
    exact_count = False  # `keep` is an average
    needs = ("cls_attention", "grid", "last_attention")
    query_aware = True
    merges = True
    positions_default = "compact"
    scope_default = "crop"  # the vision tower's attention is each crop's own
    paper = Paper("VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", "2505.22654")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.local, "local", 0, 1, what="a share of the kept tokens")
        check_number(self.window, "window", 1, integer=True, what="a number of tokens")
        check_number(self.cut, "cut", above=0, below=1, what="a share of the decoder layers")
        what = "a layer's number (an int), or a share of the tower's depth in [0, 1) (a float)"
        whole = isinstance(self.shallow, int)
        check_number(self.shallow, "shallow", 0, below=None if whole else 1, integer=whole, what=what)

    def parts(self) -> tuple[Method, ...]:
        scan = Scan(**{field.name: getattr(self, field.name) for field in fields(self)})
        return scan, Cut(keep=self.keep, average=self.average, positions=self.positions, layers=(self.cut,))

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        layer = self.shallow if isinstance(self.shallow, int) else min(depth - 1, round(self.shallow * depth))
        if layer >= depth:
            raise ValueError(f"shallow={self.shallow} is outside the vision tower's {depth} layers.")
        return layer, feature_layer

    def count(self, tokens: VisualTokens) -> int:
        if tokens.budget is not None:
            return super().count(tokens)
        return min(budgets(self.keep, self.average, self.cut, tokens.total, tokens.depth)[0], len(tokens.features))

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = len(tokens.features), self.count(tokens)
        if k == n:
            return Selection.identity(n, tokens.features.device)
        attention = tokens.signal("cls_attention").float()
        window, sizes = windows(tokens, self.window)
        shares = split_budget(min(int(k * self.local), sum(sizes)), sizes)
        near = top_of_each(attention[0], window, sizes, shares)
        kept = (ranks(attention[-1]) - n * near).argsort()[:k].sort().values
        owner = ops.nearest(tokens.features[None], tokens.features[kept][None])[0]
        owner = torch.where(tokens.separators, -1, owner) if tokens.separated else owner
        return Selection.merge(kept, owner.index_copy(0, kept, torch.arange(k, device=kept.device)))


@dataclass(frozen=True, kw_only=True)
class Scan(VScan):
    """VScan's stage before the language model."""

    needs = ("cls_attention", "grid")
    query_aware = False

    def parts(self) -> tuple[Method, ...]:
        return (self,)


@dataclass(frozen=True, kw_only=True)
class Cut(FastV):
    """VScan's stage inside the language model."""

    reads = "next"
    positions_default = "compact"

    @property
    def title(self) -> str:
        return "vscan"

    def counts(self, total: int, depth: int) -> tuple[int, ...]:
        return budgets(self.keep, self.average, self.layers[0], total, depth)[1:]


def budgets(keep: int | float, average: bool, cut: int | float, total: int, depth: int) -> tuple[int, ...]:
    """How many of `total` tokens the language model gets, and how many are left from `cut` of its layers on.

    Args:
        depth: of the language model; 0 = unknown: any in which `cut` comes out even.
    """
    wanted, depth = token_count(keep, total), depth or 1000
    if not average:
        return min(total, wanted * SHAPE[0] // SHAPE[1]), wanted
    layer = layer_number(cut, depth, "vscan")
    return proportional(SHAPE, (layer, depth - layer), wanted, total)
