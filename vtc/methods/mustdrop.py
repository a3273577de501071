"""MustDrop: spatial merging before, two-sided attention filters inside, and the same tokens in the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Method, Paper, top_k
from vtc.selection import Selection
from vtc.signals import VisualTokens
from vtc.transfer import upload

AT_ONCE = 512  # windows compared at a time


@dataclass(frozen=True, kw_only=True)
class MustDrop(Method):
    """As many as the picture and question need.

    Three stages, governed by thresholds: how many tokens stay depends on the picture and the question.

    Source: arXiv 2411.10803, section 3. (1) 3 x 3 windows of similar tokens become one — here after the projector,
    where the paper merges after the tower's first layer. (2) After layers 3, 7, 11 and 15 of 32 a token goes if the
    text's attention to it is below `share` of what all visual tokens get *and* no text token gives it `peak`; the key
    set, the best 8 % by CLS attention, always stays. (3) After the prefill, the layers from the first that a filter
    has listened to on (2 of 32, counted from 0) cache only what the last layer still saw.

    Args:
        exact: keep exactly `keep` tokens at the end instead: key set first, then by the text's attention.
        average: with `exact`, read `keep` as the mean over the decoder layers.
        share, peak: the thresholds; the paper's pairs are (0.001, 0.001) for nominally 192 of 576 tokens,
            (0.0012, 0.001) for 128 and (0.011, 0.01) for 64.
        similar: least mean cosine of a window that is merged.
        key_share: size of the key set.
    """

    name = "mustdrop"
    keep: int | float = 192
    exact: bool = False
    average: bool = False
    share: float = 0.001
    peak: float = 0.001
    similar: float = 0.8
    key_share: float = 0.08
    stage = "input"
    needs = ("cls_attention", "text_attention", "survives", "grid")
    query_aware = True
    exact_count = False
    merges = True
    positions_default = "compact"
    paper = Paper("Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model", "2411.10803")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("share", "peak", "key_share"):
            check_number(getattr(self, name), name, 0, 1, what="a share")
        check_number(self.similar, "similar", -1, 1, what="a cosine")

    def parts(self) -> tuple[Method, ...]:
        filters = DualFilter(
            keep=self.keep,
            exact=self.exact,
            average=self.average,
            share=self.share,
            peak=self.peak,
            key_share=self.key_share,
            positions=self.positions,
        )
        windows = MergeWindows(keep=self.keep if self.exact else 1, similar=self.similar, positions=self.positions)
        return windows, filters, OutputAware(first=filters.layers[0], listener=True)

    def keeps_all(self) -> bool:
        """Only with exact counts: the paper's thresholds know no budget."""
        return self.exact

    def select(self, tokens: VisualTokens) -> Selection:
        return self.parts()[0].select(tokens)


@dataclass(frozen=True, kw_only=True)
class MergeWindows(Method):
    """MustDrop's first stage: 3 x 3 windows of similar tokens become their mean; never fewer than `keep` tokens."""

    similar: float = 0.8
    needs = ("grid",)
    exact_count = False
    merges = True
    positions_default = "compact"

    def select(self, tokens: VisualTokens) -> Selection:
        n, device = tokens.features.shape[0], tokens.features.device
        least = self.count(tokens)
        output = torch.arange(n, device=device)  # anchor that absorbs each token
        windows = [w for tile in tokens.span.tiles for w in _windows(tile.indices())]
        if windows:
            index = upload(torch.stack(windows), device)  # [W, 9]
            alike = torch.cat([_likeness(tokens.features[part]) for part in index.split(AT_ONCE)])
            order = alike.argsort(descending=True, stable=True)
            order = order[alike[order] >= self.similar][: max(0, (n - least) // 8)]
            for window in index[order]:
                output[window] = window[4]  # the middle one stands for it
        anchor, source = output.unique(return_inverse=True)
        return Selection.merge(anchor, source)


def _likeness(x: Tensor) -> Tensor:
    """Mean cosine over the pairs of windows x [W, 9, D]: [W]."""
    unit = F.normalize(x.float(), dim=-1)
    return ((unit @ unit.mT).sum(dim=(1, 2)) - 9) / 72


def _windows(grid: Tensor) -> list[Tensor]:
    """Indices [9] of the whole 3 x 3 windows of a grid [t, h, w]."""
    t, h, w = grid.shape
    return [
        grid[f, y : y + 3, x : x + 3].flatten()
        for f in range(t)
        for y in range(0, h - 2, 3)
        for x in range(0, w - 2, 3)
    ]


@dataclass(frozen=True, kw_only=True)
class DualFilter(LayerMethod):
    """MustDrop's second stage: dropped only if the text ignores a token as a whole and one by one."""

    layers: tuple[int | float, ...] = (3 / 32, 7 / 32, 11 / 32, 15 / 32)
    exact: bool = False
    share: float = 0.001
    peak: float = 0.001
    key_share: float = 0.08
    reads = "previous"
    shape = (0.6, 0.45, 0.36, 0.3)
    needs = ("text_attention", "cls_attention")
    query_aware = True
    exact_count = False
    positions_default = "compact"

    def tower_layers(self, depth: int, feature_layer: int) -> tuple[int, ...]:
        return (depth - 1,)

    def select(self, tokens: VisualTokens) -> Selection:
        n = tokens.features.shape[0]
        attention = tokens.signal("text_attention")  # [T, N]
        heard = attention.sum(dim=0)
        key_set = top_k(tokens.signal("cls_attention").sum(dim=0), math.ceil(self.key_share * tokens.total))
        if self.exact:
            heard[key_set] += heard.sum() + 1
            return Selection.prune(top_k(heard, self.count(tokens)), n)
        ignored = (heard < self.share * heard.sum()).logical_and_(attention.amax(dim=0) < self.peak)
        ignored.index_fill_(0, key_set, False)
        kept = ignored.logical_not_().nonzero()[:, 0]
        return Selection.prune(kept if len(kept) else heard.argmax()[None], n)


@dataclass(frozen=True, kw_only=True)
class OutputAware(CacheMethod):
    """MustDrop's third stage: cached visual tokens that the last decoder layer no longer saw go.

    Args:
        listener: begin one layer before `first`: the layer before which tokens go is `first`, the one that was listened
            to, and attended to all of them, is the layer before.
    """

    keep: int | float = 1.0
    listener: bool = False
    needs = ("survives",)
    exact_count = False
    may_drop_all = True
    stacks = True

    def first_layer(self, depth: int) -> int:
        return max(0, super().first_layer(depth) - self.listener)

    def select(self, tokens: VisualTokens) -> Selection:
        stays = tokens.signal("survives")
        return Selection.prune(stays.nonzero().squeeze(1), len(stays))
