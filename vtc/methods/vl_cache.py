"""VL-Cache: what the text behind the picture attends to, with layer budgets by how sparse that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.checks import check_number
from vtc.methods.base.cache import CacheMethod
from vtc.methods.base.method import Paper
from vtc.methods.shared.cached import scope_signals, shared_out, with_recent
from vtc.signals import VisualTokens


@dataclass(frozen=True, kw_only=True)
class VLCache(CacheMethod):
    """What text behind the picture attends to.

    Each KV head keeps the tokens that the text behind the pictures attends to most; layers with sparse attention hold
    less.

    Source: arXiv 2410.23317, section 4 (no public code): an entry of the text's attention counts as zero if it is below
    `p` of its row's largest; a layer's density is the share of entries that do not, and its budget goes with it, from
    1 % of the tokens to all. With scope="all", where text and picture compete, it is the paper's form.

    Deviations: query heads that share keys are heard as their mean. Budgets are whole numbers that add up to `keep` in
    each layer: what a bound takes from one layer goes to the others. Chosen once, after the prefill, as in the paper.

    Args:
        p: share of a row's largest attention below which another counts as zero.
        layered: whether budgets go with the layers' density; False = all alike.
        recent: share of the budget for the latest tokens, where text is among them.
        per_head: whether each KV head chooses for itself; False = the mean over heads chooses for all.
        sinks: how many of a row's first tokens stay, where text is chosen among.
    """

    name = "vl-cache"
    keep: int | float = 0.5
    p: float = 0.01
    layered: bool = True
    recent: float = 0.1
    per_head: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    sinks: int = 4  # pyright: ignore[reportIncompatibleVariableOverride]
    window = "text"
    needs = ("attention_record", "layer_record", "cached_visual")
    query_aware = True
    paper = Paper(
        "VL-Cache: Sparsity and Modality-Aware KV Cache Compression for Vision-Language Model Inference Acceleration",
        "2410.23317",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.p, "p", 0, 1, what="a share of a row's largest attention")
        check_number(self.recent, "recent", 0, below=1, what="a share of the kept tokens")

    def requires(self) -> tuple[str, ...]:
        return ("attention_record", *(("layer_record",) if self.layered else ()), *scope_signals(self))

    def layer_gain(self, rows: Tensor, visible: Tensor) -> Tensor | None:
        """How many entries are not zero, and how many there are."""
        if not self.layered:
            return None
        dense = (rows >= self.p * rows.amax(dim=-1, keepdim=True)) & (rows > 0)
        there = visible.expand(rows.shape[:-1]).sum(dim=-1)
        return torch.stack([dense.sum(dim=(-2, -1)), there], dim=-1).float()

    def layer_budgets(self, layers: Sequence[VisualTokens]) -> Sequence[int] | None:
        if not self.layered:
            return None
        n, count = layers[0].features.shape[0], self.count(layers[0])
        records = torch.stack([tokens.signal("layer_record").reshape(-1, 2) for tokens in layers])  # [layers, G, 2]
        density = (records[..., 0] / records[..., 1].clamp(min=1)).mean(dim=1)
        return shared_out(density.tolist(), count * len(layers), max(1, round(0.01 * n)), n)

    def score(self, tokens: VisualTokens) -> Tensor:
        late = int(self.recent * self.count(tokens))
        return with_recent(self, tokens, tokens.signal("attention_record"), late)
