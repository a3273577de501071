"""VScan: a global and a local look at the picture, then one cut in the middle of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.budget import layer_number, proportional, split_budget, token_count
from vtc.checks import check_number
from vtc.kernels.pictures import ranks
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import upload

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
        self.parts()  # which check the options

    def parts(self) -> tuple[Method, ...]:
        same: dict[str, Any] = dict(keep=self.keep, average=self.average, positions=self.positions)
        names = ("scope", "local", "window", "shallow", "cut")
        first = Scan(**same, **{name: getattr(self, name) for name in names})
        return first, Cut(**same, layers=(self.cut,))

    def select(self, tokens: VisualTokens) -> Selection:
        return self.parts()[0].select(tokens)


@dataclass(frozen=True, kw_only=True)
class Scan(Method):
    """VScan's stage before the language model."""

    average: bool = True
    local: float = 0.5
    window: int = 6
    shallow: int | float = 0.22
    cut: float = 0.5
    needs = ("cls_attention", "grid")
    merges = True
    positions_default = "compact"
    scope_default = "crop"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.local, "local", 0, 1, what="a share of the kept tokens")
        check_number(self.window, "window", 1, integer=True, what="a number of tokens")
        check_number(self.cut, "cut", above=0, below=1, what="a share of the decoder layers")
        what = "a layer's number (an int), or a share of the tower's depth in [0, 1) (a float)"
        if isinstance(self.shallow, int):
            check_number(self.shallow, "shallow", 0, integer=True, what=what)
        else:
            check_number(self.shallow, "shallow", 0, below=1, what=what)

    @property
    def title(self) -> str:
        return "vscan"

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        layer = self.shallow if isinstance(self.shallow, int) else round(self.shallow * depth)
        if layer >= depth:
            raise ValueError(f"shallow={self.shallow} is outside the vision tower's {depth} layers.")
        return layer, feature_layer

    def count(self, tokens: VisualTokens) -> int:
        if tokens.budget is not None:
            return super().count(tokens)
        return min(opening(self.keep, self.average, self.cut, tokens.total), len(tokens.features))

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = len(tokens.features), self.count(tokens)
        if k == n:
            return Selection.identity(n, tokens.features.device)
        attention = tokens.signal("cls_attention").float()
        window, sizes = _windows(tokens, self.window)
        few = min(int(k * self.local), sum(sizes))
        counts = upload(torch.tensor([*split_budget(few, sizes), 0]), window.device)  # the last: of no window
        order = ranks(attention[0]).argsort()
        order = order[window[order].argsort(stable=True)]  # window by window, each by attention
        start = upload(torch.tensor([0, *accumulate(sizes)]), window.device)
        place = torch.arange(n, device=window.device) - start[window[order]]
        near = torch.zeros_like(window).scatter(0, order, (place < counts[window[order]]).long())
        kept = (ranks(attention[-1]) - n * near).argsort()[:k].sort().values
        unit = torch.nan_to_num(F.normalize(tokens.features.detach().float(), dim=-1))
        owner = (unit @ unit[kept].T).argmax(dim=1)
        owner = torch.where(tokens.separators, -1, owner) if tokens.separated else owner
        return Selection.merge(kept, owner.index_copy(0, kept, torch.arange(k, device=kept.device)))


@dataclass(frozen=True, kw_only=True)
class Cut(LayerMethod):
    """VScan's stage inside the language model."""

    layers: tuple[int | float, ...] = (0.5,)
    reads = "next"
    shape = (0.5,)
    needs = ("last_attention",)
    stacks = True
    query_aware = True
    positions_default = "compact"

    @property
    def title(self) -> str:
        return "vscan"

    def counts(self, total: int, depth: int) -> tuple[int, ...]:
        wanted, (share,) = token_count(self.keep, total), self.layers
        if not self.average:
            return (wanted,)
        first, layer = opening(self.keep, True, float(share), total), layer_number(share, depth, self.title)
        return (max(1, min(first, round((wanted * depth - first * layer) / (depth - layer)))),)

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.signal("last_attention")


def opening(keep: int | float, average: bool, cut: float, total: int) -> int:
    """How many of `total` tokens the language model gets."""
    wanted = token_count(keep, total)
    if not average:
        return min(total, wanted * SHAPE[0] // SHAPE[1])
    return proportional(SHAPE, (round(1000 * cut), round(1000 * (1 - cut))), wanted, total)[0]


def _windows(tokens: VisualTokens, side: int) -> tuple[Tensor, list[int]]:
    """Of each token the window that it lies in, LongTensor [N], and how many lie in each.

    Windows are those of each tile, frame by frame, row by row; those at the edges may be smaller. Separators lie in
    none: the number behind the last.
    """
    number, count = torch.full((tokens.total,), -1, dtype=torch.long), 0
    for tile in tokens.span.tiles:
        for frame in tile.indices():
            for band in frame.split(side):
                for cell in band.split(side, dim=1):
                    number[cell.flatten()], count = count, count + 1
    number = torch.where(number < 0, count, number)
    here = upload(number, tokens.index.device)[tokens.index]
    whole = number if len(here) == tokens.total else here.cpu()  # nothing is read from a device where all are there
    return here, torch.bincount(whole, minlength=count + 1)[:count].tolist()
