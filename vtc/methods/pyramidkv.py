"""PyramidKV: SnapKV with more in the early layers than in the late ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtc.checks import check_number
from vtc.methods.base.method import Paper
from vtc.methods.shared.cached import shared_out
from vtc.methods.snapkv import SnapKV
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class PyramidKV(SnapKV):
    """SnapKV, with less in each later layer.

    Source: arXiv 2406.02069, section 4: budgets fall linearly with depth, those of the first and the last layer 2 - 1 /
    `beta` and 1 / `beta` of the mean; what is kept in a layer is SnapKV's. Layers before `first` do not count.

    Budgets are whole numbers that add up to `keep` in each layer, at least 1 each; the window comes on top of what
    falls, as in the paper. Where the first layer would hold more than there is, it holds all and the line is flatter;
    where twice the mean is more than there is, all layers are alike, as in the released code. Three later studies found
    this weaker than alike budgets in vision-language models.

    Args:
        beta: how steep: the mean over the last layer's budget; 1 = all alike.
    """

    name = "pyramidkv"
    beta: float = 20
    paper = Paper("PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", "2406.02069")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.beta, "beta", 1, what="the mean over the last layer's budget")

    def layer_budgets(self, layers: Sequence[VisualTokens]) -> Sequence[int] | None:
        n, count, late = layers[0].features.shape[0], self.count(layers[0]), self.late(layers[0])
        free = count - late
        if len(layers) < 2 or free < 1 or n < 2 * free:
            return None
        low, high = free / self.beta, 2 * free - free / self.beta
        if high > n - late:
            low, high = 2 * free - (n - late), n - late
        step = (high - low) / (len(layers) - 1)
        line = [high - i * step for i in range(len(layers))]
        return [late + part for part in shared_out(line, free * len(layers), 0 if late else 1, n - late)]
