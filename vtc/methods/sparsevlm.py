"""SparseVLM: the text tokens that the picture is about rate the visual tokens; what they reject is partly recycled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Paper, top_k
from vtc.selection import Selection
from vtc.signals import Signal, VisualTokens, register_signal


def text_raters(embeds: Tensor, visual: Tensor, after: Tensor) -> Tensor:
    """Which text tokens the pictures are about, at the language model's input.

    A text token is a rater if the share of the pictures' similarity that falls to it, softmax over the text of the
    inner products with each visual token, averaged over those, exceeds the mean (SparseVLM, arXiv 2410.04417, section
    3.2).

    Args:
        embeds: [B, L, D]. visual: BoolTensor [B, L]. after: LongTensor [B, R], text after the pictures, -1 = none.

    Returns:
        BoolTensor [B, R], False where `after` is -1.
    """
    raters = torch.zeros_like(after, dtype=torch.bool)
    for row in range(len(after)):
        there = after[row] >= 0
        if not there.any() or not visual[row].any():
            continue
        looks, text = embeds[row, visual[row]].float(), embeds[row, after[row][there]].float()
        share = (looks @ text.T).softmax(dim=-1).mean(dim=0)  # [T]
        raters[row, there] = share >= share.mean() if len(share) == 1 else share > share.mean()
    return raters


register_signal(
    Signal(
        "text_raters",
        ("T",),
        "layer",
        "True for text after the pictures that the pictures are about (SparseVLM's text raters)",
        lambda layer, span: layer.kept["text_raters"][layer.row(span), layer.words(span)],
        door=lambda door: text_raters(door.embeds, door.visual, door.text_after),
    )
)


@dataclass(frozen=True, kw_only=True)
class SparseVLM(LayerMethod):
    """Text raters score, rejected tokens are clustered and recycled.

    Source: arXiv 2410.04417, section 3. Raters are chosen once, at the language model's input; the score is their mean
    attention in the layer before. Of the rejected tokens the best 30 % are clustered (DPC-KNN) into a tenth as many,
    plus one, which are appended; `keep` counts them in. After layers 3, 7 and 16 of 32; the shape is that of the
    released list for 192 tokens (300, 200, 110 of 576).

    Args:
        recycle: share of the rejected tokens that are clustered; 0 = prune only.
    """

    name = "sparsevlm"
    keep: int | float = 110 / 576
    layers: tuple[int | float, ...] = (3 / 32, 7 / 32, 16 / 32)
    recycle: float = 0.3
    reads = "previous"
    shape = (300 / 576, 200 / 576, 110 / 576)
    needs = ("text_attention", "text_raters")
    query_aware = True
    merges = True
    appends = True
    positions_default = "compact"
    paper = Paper("SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", "2410.04417")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.recycle, "recycle", 0, 1, what="a share of the rejected tokens")

    def select(self, tokens: VisualTokens) -> Selection:
        n, k = tokens.features.shape[0], self.count(tokens)
        attention, raters = tokens.signal("text_attention"), tokens.signal("text_raters")
        score = (attention[raters] if raters.any() else attention).mean(dim=0)
        few = self._clusters(n, k)
        kept = top_k(score, k - few)
        if few == 0:
            return Selection.prune(kept, n)
        rejected = torch.ones(n, dtype=torch.bool, device=kept.device)
        rejected[kept] = False
        candidates = int(self.recycle * (n - len(kept)))
        others = rejected.nonzero()[:, 0]
        second = others[top_k(score[others], candidates)]
        return _recycled(tokens.features, kept, second, few)

    def _clusters(self, n: int, k: int) -> int:
        """How many of the k outputs are clusters: a tenth of the candidates, plus one."""
        few = 0
        while few < k - 1 and int(self.recycle * (n - k + few + 1)) // 10 + 1 > few:
            few += 1
            if int(self.recycle * (n - k + few)) < few:
                return few - 1
        return few if n > k else 0


def _recycled(features: Tensor, kept: Tensor, second: Tensor, few: int) -> Selection:
    """`kept` as they are, then the means of `few` clusters of `second`, each standing at its centre."""
    centres, member = ops.dpc_knn(features[second], few)
    n, m = features.shape[0], len(kept)
    source = torch.full((n,), -1, dtype=torch.long, device=features.device)
    source[kept] = torch.arange(m, device=features.device)
    source[second] = member + m
    return Selection.merge(torch.cat([kept, second[centres]]), source)
