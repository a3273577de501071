"""SparseVLM: the text tokens that the picture is about rate the visual tokens; what they reject is partly recycled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc import ops
from vtc.checks import check_number
from vtc.methods.base.layer import LayerMethod
from vtc.methods.base.method import Paper, rest_of, top_k
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
    there, row = after >= 0, torch.arange(len(after), device=after.device)[:, None]
    text = embeds[row, after.clamp(min=0)].float()  # [B, R, D]
    looks = (embeds.float() @ text.mT).masked_fill(~there[:, None], -torch.inf).softmax(dim=-1)  # [B, L, R]
    seen = visual.sum(dim=1, keepdim=True)
    share = torch.where(visual[..., None], looks, 0.0).sum(dim=1) / seen.clamp(min=1)  # [B, R]
    words = there.sum(dim=1, keepdim=True)
    mean = share.sum(dim=1, keepdim=True) / words.clamp(min=1)
    return there & (seen > 0) & ((share > mean) | (words == 1))  # a single word has nothing to exceed


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


ADAPTIVE = {"rank": 1.0, "released": 13.5}  # and what `scale` is by default


@dataclass(frozen=True, kw_only=True)
class SparseVLM(LayerMethod):
    """What the question's words attend to.

    Text raters score, rejected tokens are clustered and recycled.

    Source: arXiv 2410.04417, section 3. Raters are chosen once, at the language model's input; the score is their mean
    attention in the layer before. Of n rejected tokens the best int(0.3 n) + 1 are clustered (DPC-KNN, with as many
    neighbours as clusters) into a tenth as many, plus one, which are appended; `keep` counts them in, so that as many
    tokens as it allows stay. After layers 3, 7 and 16 of 32; the shape is that of the released list for 192 tokens,
    (300, 200, 110) of 576. The released code counts clusters on top of its lists: `keeps=(309, 204, 113)` is what it
    keeps. It breaks ties by noise; here the lowest index wins, and where no text token is a rater all are.

    Version 2 (the authors' SparseVLM+, released in December 2025, of which there is only the code): tokens keep their
    positions, nothing is recycled, and the score is corrected. Each head's attention is divided by what the rotary
    embedding alone favours (the signal `rotation_bias`), and of the heads those count in which the raters then give the
    tokens most. Its lists are `keeps=(300, 200, 118)`, (238, 108, 60), (246, 54, 28) and (66, 34, 20).

    Args:
        recycle: share of the rejected tokens that are clustered; 0 = prune only; None = 0.3, in version 2 0.
        version: 1 or 2.
        heads: in version 2, how many heads count (fewer heads: all of them).
        adaptive: let the rank of the raters' attention [raters, n] to n tokens say how many stay, instead of `keep`:
            "rank" drops int(scale * (n - rank)) (section 3.3); "released" keeps int(scale * rank + bias), as the code
            did before it had lists. Clusters come on top.
        scale: None = 1 for "rank" (our choice of the paper's factor), 13.5 for "released" (that of its MME script).
        bias: of "released".
    """

    name = "sparsevlm"
    keep: int | float = 110 / 576
    layers: tuple[int | float, ...] = (3 / 32, 7 / 32, 16 / 32)
    recycle: float | None = None
    version: int = 1
    heads: int = 14
    adaptive: str | None = None
    scale: float | None = None
    bias: float = 0.0
    reads = "previous"
    shape = (300 / 576, 200 / 576, 110 / 576)
    needs = ("text_attention", "text_raters")
    query_aware = True
    merges = True
    appends = True
    positions_default = "compact"
    paper = Paper("SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", "2410.04417")

    def __post_init__(self) -> None:
        check_number(self.version, "version", 1, 2, integer=True, what="the version of the method")
        if self.positions is None and self.version == 2:
            object.__setattr__(self, "positions", "original")
        super().__post_init__()
        if self.recycle is not None:
            check_number(self.recycle, "recycle", 0, 1, what="a share of the rejected tokens")
        check_number(self.heads, "heads", 1, integer=True, what="a number of attention heads")
        self._check_adaptive()

    def _check_adaptive(self) -> None:
        check_number(self.bias, "bias", what="a number of tokens")
        if self.scale is not None:
            high = 1 if self.adaptive == "rank" else None
            check_number(self.scale, "scale", above=0, high=high, what="what ranks are multiplied by")
        if self.adaptive is None:
            return
        if self.adaptive not in ADAPTIVE:
            raise ValueError(f'adaptive={self.adaptive!r} is not one of "rank", "released", None.')
        if self.keeps is not None or self.average:
            raise ValueError("adaptive= lets the attention say how many tokens stay: leave keeps= and average= out.")

    def requires(self) -> tuple[str, ...]:
        return self.needs if self.version == 1 else ("head_attention", "rotation_bias", "text_raters")

    def keeps_all(self) -> bool:
        """Not where the rank of the attention decides."""
        return self.adaptive is None

    def select(self, tokens: VisualTokens) -> Selection:
        n, raters = len(tokens.features), tokens.signal("text_raters")
        raters = raters | ~raters.any()  # where nothing rates, all does
        heard = self._heard(tokens, raters)
        score = heard.sum(dim=0) / raters.sum()
        if self.adaptive is None:
            k = self.count(tokens)
            few = self._clusters(n, k)
            kept = top_k(score, k - few)
        else:
            kept = top_k(score, self._by_rank(heard))
            few = self._on_top(n - len(kept))
        if few == 0:
            return Selection.prune(kept, n)
        others = rest_of(kept, n)
        second = others[top_k(score[others], self._candidates(len(others)))]
        return _recycled(tokens.features, kept, second, few)

    def _heard(self, tokens: VisualTokens, raters: Tensor) -> Tensor:
        """[T, N]: attention of the text, mean over the heads that count; 0 for what is none of the `raters` [T]."""
        if self.version == 1:
            return torch.where(raters[:, None], tokens.signal("text_attention"), 0.0)
        heads = tokens.signal("head_attention") / tokens.signal("rotation_bias")
        heads = torch.where(raters[:, None], heads, 0.0)
        return heads[top_k(heads.sum(dim=(1, 2)), self.heads)].mean(dim=0)

    def _by_rank(self, heard: Tensor) -> int:
        """How many of N tokens stay as they are, by the rank of the attention [T, N] that they get."""
        n, scale = heard.shape[1], ADAPTIVE[str(self.adaptive)] if self.scale is None else self.scale
        rank = int(torch.linalg.matrix_rank(heard.float()))
        if rank == n:
            return n
        stay = n - int(scale * (n - rank)) if self.adaptive == "rank" else min(int(scale * rank + self.bias), n - 1)
        return max(1, stay)

    def _candidates(self, rejected: int) -> int:
        """How many of the rejected tokens are clustered."""
        share = (0.3 if self.version == 1 else 0.0) if self.recycle is None else self.recycle
        return min(rejected, int(share * rejected) + 1) if share else 0

    def _on_top(self, rejected: int) -> int:
        """How many clusters the candidates make: a tenth of them, plus one."""
        candidates = self._candidates(rejected)
        return candidates // 10 + 1 if candidates else 0

    def _clusters(self, n: int, k: int) -> int:
        """How many of the k outputs are clusters; each takes the place of a token, which is rejected, too.

        Example: 309 of 576 are 300 tokens and 9 clusters: 276 are rejected, int(0.3 * 276) + 1 = 83 of them are
        clustered, 83 // 10 + 1 = 9.
        """
        few = 0
        while few < min(k - 1, n - k) and self._on_top(n - k + few) > few:
            few += 1
        return few


def _recycled(features: Tensor, kept: Tensor, second: Tensor, few: int) -> Selection:
    """`kept` as they are, then the means of `few` clusters of `second`, each standing at its centre."""
    centres, member = ops.dpc_knn(features[second], few, few)
    n, m = features.shape[0], len(kept)
    source = torch.full((n,), -1, dtype=torch.long, device=features.device)
    source[kept] = torch.arange(m, device=features.device)
    source[second] = member + m
    return Selection.merge(torch.cat([kept, second[centres]]), source)
